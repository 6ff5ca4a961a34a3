//! What the kernel and callers write about mounts.

use std::path::Path;

use super::super::mountinfo;
use super::super::options::Options;

#[test]
fn lists_of_mounts() {
    let seeds = [
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
         30 27 0:30 / /run/kata/a@b/mounts rw shared:1 - tmpfs tmpfs rw\n\
         31 30 8:1 /x /run/kata/a@b/mounts/c/root\\040fs rw master:2 - ext4 /dev/vda rw\n",
        "18446744073709551616 1 0:1 / /run/kata/a@b/\\134\\377\\01 rw - x y z\nbroken\n",
    ];
    fuzz::target("lists-of-mounts", seeds, |input| {
        let directory = Path::new("/run/kata/a@b");
        let lines = input.split(|byte| *byte == b'\n').count();
        let below = mountinfo::below(input, directory);
        assert!(below.len() <= lines && below.iter().all(|path| path.starts_with(directory)));
        let strictly = below.iter().filter(|path| *path != directory).count();
        assert!(mountinfo::ids_below(input, directory).len() <= strictly);
        assert!(mountinfo::unescaped(input).as_os_str().len() <= input.len());
    });
}

#[test]
fn options_of_mounts() {
    let seeds = [
        "overlay\nlowerdir=/l/1:/l/2,upperdir=/u,workdir=/w\nindex=off\n",
        "bind\nrbind,ro\nnosuid\nnodev\n",
        "ext4\nnoatime,data=ordered\nerrors=remount-ro\n",
        "overlay\nlowerdir=/a\\:b:/a\\,c\nuserxattr\n",
    ];
    fuzz::target("options-of-mounts", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let mut words = text.lines().map(str::to_owned);
        let kind = words.next().unwrap_or_default();
        let options: Vec<String> = words.collect();
        if let Ok(options) = Options::parse(&kind, &options)
            && let Ok(data) = options.data()
        {
            // It goes to the kernel as it is.
            assert!(data.text.len() < 4096, "{} bytes", data.text.len());
            assert!(data.base.is_none_or(|base| base.is_absolute()));
        }
    });
}
