//! Root file systems, mounts, and what is written to them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("read_only_root", read_only_root),
    Listed::both("bind_mounts", bind_mounts),
    Listed::both("tmpfs_and_shared_memory", tmpfs_and_shared_memory),
    Listed::both("writes_reach_the_snapshot", writes_reach_the_snapshot),
    Listed::both("what_programs_do_to_files", what_programs_do_to_files),
];

const FOREVER: &[&str] = &["sleep", "1000"];

/// Nothing of the image can be changed, and what is mounted over it can.
fn read_only_root(case: &mut Case<'_>) -> Result<()> {
    let script = "for f in /new /bin/new /etc/hosts; do echo x > $f; done; echo y > /run/f && echo z > /dev/shm/f && cat /run/f /dev/shm/f";
    let output = case.shell(&["--read-only"], script)?;
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        3,
        "{output}"
    );
    assert_eq!(output.success()?, "y\nz\n");
    Ok(())
}

/// Directories and files of the host, both ways, as writable as asked for.
fn bind_mounts(case: &mut Case<'_>) -> Result<()> {
    let directory = case.path("bound");
    fs::create_dir(&directory)?;
    fs::write(directory.join("from-host"), "host\n")?;
    let resolver = case.path("resolv.conf");
    fs::write(&resolver, "nameserver 192.0.2.53\n")?;
    let mounts = [
        mount(&directory, "/writable", "rbind:rw"),
        mount(&directory, "/readable", "rbind:ro"),
        mount(&resolver, "/etc/resolv.conf", "rbind:ro"),
    ];
    let flags: Vec<&str> = mounts
        .iter()
        .flat_map(|mount| ["--mount", mount.as_str()])
        .collect();
    let container = case.start(&flags, FOREVER)?;
    assert_eq!(
        container.shell("cat /writable/from-host /readable/from-host /etc/resolv.conf")?,
        "host\nhost\nnameserver 192.0.2.53\n"
    );
    container.shell("echo guest > /writable/from-guest; chown 1000:1001 /writable/from-guest; chmod 640 /writable/from-guest")?;
    let written = directory.join("from-guest");
    assert_eq!(fs::read_to_string(&written)?, "guest\n");
    let data = fs::metadata(&written)?;
    assert_eq!(
        (data.uid(), data.gid(), data.permissions().mode() & 0o7777),
        (1000, 1001, 0o640)
    );
    // What the host changes while the container runs is seen as well.
    fs::write(directory.join("later"), "later\n")?;
    assert_eq!(container.shell("cat /readable/later")?, "later\n");
    for path in ["/readable/from-host", "/etc/resolv.conf"] {
        let error = container
            .exec(&[], &["sh", "-c", "echo x > $0", path])
            .output()?
            .failure()?;
        ensure!(error.contains("Read-only file system"), "{path}: {error}");
    }
    container.remove()?;
    fs::remove_dir_all(&directory)?;
    Ok(())
}

fn mount(source: &Path, destination: &str, options: &str) -> String {
    format!(
        "type=bind,src={},dst={destination},options={options}",
        source.display()
    )
}

/// Memory as a file system, with its limit.
fn tmpfs_and_shared_memory(case: &mut Case<'_>) -> Result<()> {
    let scratch = "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:mode=1777";
    let script = "grep -E ' /(scratch|dev/shm) ' /proc/mounts | cut -d ' ' -f 2,3; stat -c %a /scratch; \
        dd if=/dev/zero of=/scratch/file bs=64k count=32 2>/dev/null; stat -c %s /scratch/file; \
        echo shared > /dev/shm/file; cat /dev/shm/file; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2";
    let output = case.shell(&["--mount", scratch], script)?.success()?;
    let lines: Vec<_> = output.lines().collect();
    for line in [
        "/scratch tmpfs",
        "/dev/shm tmpfs",
        "1777",
        "1048576",
        "shared",
        "65536",
    ] {
        ensure!(lines.contains(&line), "{line} is missing: {output}");
    }
    Ok(())
}

/// What a container writes to its root is in its snapshot on the host, while it runs and after it.
fn writes_reach_the_snapshot(case: &mut Case<'_>) -> Result<()> {
    // That of a block device is looked at in `disks`.
    let flags = case.on("overlayfs")?;
    let container = case.start(&flags, FOREVER)?;
    let upper = upper_directory(case, &container.id)?;
    container.shell("mkdir /made; echo new > /made/file; echo added >> /etc/hosts; rm /bin/yes; ln -s file /made/link; sync")?;
    assert_eq!(fs::read_to_string(upper.join("made/file"))?, "new\n");
    assert_eq!(
        fs::read_to_string(upper.join("etc/hosts"))?,
        "127.0.0.1 localhost\nadded\n"
    );
    assert_eq!(fs::read_link(upper.join("made/link"))?, Path::new("file"));
    // An overlay's word for what is removed: a character device 0,0.
    assert_eq!(fs::symlink_metadata(upper.join("bin/yes"))?.rdev(), 0);
    container.kill("KILL")?;
    container.wait_for_status("STOPPED")?;
    container.delete_task()?;
    assert_eq!(fs::read_to_string(upper.join("made/file"))?, "new\n");
    container.delete()
}

/// Where the snapshot of a container has what was written.
fn upper_directory(case: &Case<'_>, id: &str) -> Result<PathBuf> {
    let command = case
        .ctr(&["snapshots", "--snapshotter", "overlayfs", "mounts", "/target", id])
        .read()?;
    let (_, rest) = command
        .split_once("upperdir=")
        .with_context(|| format!("no upper directory: {command}"))?;
    let path: String = rest
        .chars()
        .take_while(|c| !c.is_whitespace() && *c != ',')
        .collect();
    Ok(path.into())
}

/// Links, renames, deletion of what is open, many files, pipes, modes, owners, times, holes.
fn what_programs_do_to_files(case: &mut Case<'_>) -> Result<()> {
    let script = r#"
        set -e
        mkdir /w; cd /w
        echo one > a; ln a b; ln -s a c; echo two >> b; cat a c; stat -c %h a
        mv a d; cat b; test ! -e c; rm c
        exec 3< d; rm b d; cat <&3; exec 3<&-
        mkdir -p deep/er; echo x > deep/er/f; mv deep moved; cat moved/er/f; rm -r moved; ls
        mkfifo p; echo through > p & cat p; rm p
        for i in $(seq 300); do echo $i > f$i; done; ls | wc -l; cat f300; rm f*; ls | wc -l
        touch m; chmod 4751 m; chown 12:34 m; # takes the set-user-id bit away
         stat -c '%a %u:%g' m; touch -d '2001-02-03 04:05:06' m; date -r m +%s
        dd if=/dev/zero of=s bs=1 count=1 seek=10485760 2>/dev/null; stat -c %s s; truncate -s 5 s; stat -c %s s
        echo end
    "#;
    let output = case.shell(&[], script)?.success()?;
    let expected = "one\ntwo\none\ntwo\n2\none\ntwo\none\ntwo\nx\nthrough\n300\n300\n0\n\
        751 12:34\n981173106\n10485761\n5\nend\n";
    assert_eq!(output, expected);
    Ok(())
}
