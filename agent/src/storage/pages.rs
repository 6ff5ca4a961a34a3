//! Huge pages: which the guest's kernel has, and that there are enough of them.

use std::path::Path;

use crate::error::{Error, Result};

/// Where the kernel has a directory for each size.
pub const ALL: &str = "/sys/kernel/mm/hugepages";

/// Pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Bytes of one.
    size: u64,
    /// Those that are to be there before anybody asks for them.
    wanted: u64,
}

impl Pages {
    /// Reads the options of a mount.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(options: &[String]) -> Result<Self> {
        const FIELD: &str = "storage.options";
        let number = |name: &str| {
            let text = options.iter().find_map(|option| option.strip_prefix(name));
            text.map(|text| {
                text.parse::<u64>()
                    .map_err(|_| Error::invalid(FIELD, format!("{name}{text}: no number")))
            })
            .transpose()
        };
        let size = number("pagesize=")?.unwrap_or(0);
        if size < 1024 || !size.is_power_of_two() {
            return Err(Error::invalid(FIELD, "hugetlbfs needs pagesize=<bytes>"));
        }
        Ok(Self {
            size,
            wanted: number("size=")?.unwrap_or(0).div_ceil(size),
        })
    }

    /// Sees to it that those which are wanted are there and free. `all`: [`ALL`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a size that the kernel does not have, [`Error::NoPages`] when there is no room.
    pub fn reserve(&self, all: &Path) -> Result<()> {
        let kilobytes = self.size >> 10;
        let directory = all.join(format!("hugepages-{kilobytes}kB"));
        if !directory.is_dir() {
            return Err(Error::Unsupported(format!("a page size of {kilobytes} kB")));
        }
        let read = |name: &str| -> Result<u64> {
            let file = directory.join(name);
            let text = std::fs::read_to_string(&file).map_err(Error::file("read", &file))?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        let free = read("free_hugepages")?;
        let Some(missing) = self.wanted.checked_sub(free).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        let file = directory.join("nr_hugepages");
        let all = read("nr_hugepages")? + missing;
        // The kernel makes as many as it can, and no error of it.
        std::fs::write(&file, all.to_string()).map_err(Error::file("write", &file))?;
        let free = read("free_hugepages")?;
        match free < self.wanted {
            true => Err(Error::NoPages {
                kilobytes,
                wanted: self.wanted,
                free,
            }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_size_is_needed_and_pages_are_counted() {
        let pages = Pages::parse(&options("pagesize=2097152 mode=777 size=5000000")).unwrap();
        assert_eq!((pages.size, pages.wanted), (2 << 20, 3));
        for bad in [
            "mode=777",
            "pagesize=2M",
            "pagesize=3000000",
            "pagesize=2097152 size=x",
        ] {
            assert!(Pages::parse(&options(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_kernel_cannot_give_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let pages = |size: u64, wanted| Pages { size, wanted };
        let unknown = pages(1 << 30, 0).reserve(dir.path()).unwrap_err().to_string();
        assert!(unknown.contains("1048576 kB"), "{unknown}");
        // A kernel that has two pages, and makes no more.
        let size = dir.path().join("hugepages-2048kB");
        std::fs::create_dir(&size).unwrap();
        std::fs::write(size.join("free_hugepages"), "2\n").unwrap();
        std::fs::write(size.join("nr_hugepages"), "3\n").unwrap();
        pages(2 << 20, 2).reserve(dir.path()).unwrap();
        assert_eq!(
            std::fs::read_to_string(size.join("nr_hugepages")).unwrap(),
            "3\n",
            "there are enough"
        );
        let few = pages(2 << 20, 5).reserve(dir.path()).unwrap_err().to_string();
        assert!(
            few.contains("5 huge pages of 2048 kB") && few.contains("memory"),
            "{few}"
        );
        assert_eq!(
            std::fs::read_to_string(size.join("nr_hugepages")).unwrap(),
            "6",
            "it was asked for the rest"
        );
    }
}
