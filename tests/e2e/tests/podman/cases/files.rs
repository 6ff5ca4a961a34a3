//! Files: volumes, mounts, copies, images.

use std::fs;

use anyhow::{Result, ensure};
use e2e::image;

use super::{cases, same};
use crate::bed::Bed;

cases! {
    a_volume_keeps_what_is_written,
    a_directory_of_the_host_is_seen_and_written,
    a_directory_that_is_read_only_is_not_written,
    a_file_of_the_host_is_seen,
    a_tmpfs_is_there,
    a_root_that_is_read_only_is_not_written,
    files_are_copied_out_of_a_running_container_and_into_it,
    files_are_copied_out_of_a_stopped_container,
    changes_become_an_image,
    a_name_is_added_to_the_known_ones,
}

fn a_volume_keeps_what_is_written(bed: &Bed) -> Result<()> {
    let volume = bed.name();
    bed.call(&["volume", "create", &volume])?;
    let option = format!("--volume={volume}:/data");
    bed.run(&["--rm", &option], &["sh", "-c", "echo kept >/data/file"])?
        .success()?;
    let said = bed.run(&["--rm", &option], &["cat", "/data/file"])?.success()?;
    same(&said, "kept\n")?;
    bed.call(&["volume", "rm", &volume]).map(drop)
}

fn a_directory_of_the_host_is_seen_and_written(bed: &Bed) -> Result<()> {
    let directory = bed.directory().join(bed.name());
    fs::create_dir(&directory)?;
    fs::write(directory.join("in"), "from the host\n")?;
    let option = format!("--volume={}:/data", directory.display());
    let said = bed.run(
        &["--rm", &option],
        &["sh", "-c", "cat /data/in; echo from the guest >/data/out"],
    )?;
    same(&said.success()?, "from the host\n")?;
    same(&fs::read_to_string(directory.join("out"))?, "from the guest\n")
}

fn a_directory_that_is_read_only_is_not_written(bed: &Bed) -> Result<()> {
    let directory = bed.directory().join(bed.name());
    fs::create_dir(&directory)?;
    let option = format!("--volume={}:/data:ro", directory.display());
    bed.run(&["--rm", &option], &["sh", "-c", "! touch /data/file"])?
        .success()?;
    ensure!(!directory.join("file").exists(), "it was written");
    Ok(())
}

fn a_file_of_the_host_is_seen(bed: &Bed) -> Result<()> {
    let file = bed.directory().join(bed.name());
    fs::write(&file, "text\n")?;
    let option = format!("--volume={}:/etc/some.conf:ro", file.display());
    same(
        &bed.run(&["--rm", &option], &["cat", "/etc/some.conf"])?
            .success()?,
        "text\n",
    )
}

fn a_tmpfs_is_there(bed: &Bed) -> Result<()> {
    let said = bed.run(
        &["--rm", "--tmpfs=/scratch:size=1m"],
        &["sh", "-c", "df -k /scratch | tail -1 | awk '{print $2}'"],
    )?;
    same(&said.success()?, "1024\n")
}

fn a_root_that_is_read_only_is_not_written(bed: &Bed) -> Result<()> {
    bed.run(
        &["--rm", "--read-only"],
        &["sh", "-c", "! touch /file && touch /tmp/file"],
    )?
    .success()
    .map(drop)
}

fn files_are_copied_out_of_a_running_container_and_into_it(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let (into, out) = (bed.directory().join(bed.name()), bed.directory().join(bed.name()));
    fs::write(&into, "into it\n")?;
    bed.call(&["cp", &into.display().to_string(), &format!("{name}:/root/file")])?;
    same(&bed.sh(&name, "cat /root/file")?, "into it")?;
    bed.sh(&name, "echo out of it >/root/other")?;
    bed.call(&["cp", &format!("{name}:/root/other"), &out.display().to_string()])?;
    same(&fs::read_to_string(&out)?, "out of it\n")?;
    // And not the host's.
    bed.call(&["cp", &format!("{name}:/etc/passwd"), &out.display().to_string()])?;
    ensure!(
        fs::read_to_string(&out)?.contains("guest:x:1000"),
        "it is the host's"
    );
    bed.remove(&name)
}

fn files_are_copied_out_of_a_stopped_container(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sh", "-c", "echo left >/root/file"])?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    let out = bed.directory().join(bed.name());
    bed.call(&["cp", &format!("{name}:/root/file"), &out.display().to_string()])?;
    same(&fs::read_to_string(&out)?, "left\n")?;
    bed.remove(&name)
}

fn changes_become_an_image(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sh", "-c", "echo new >/file"])?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    let image = format!("localhost/{}:latest", bed.name());
    bed.call(&["commit", "--quiet", &name, &image])?;
    bed.remove(&name)?;
    let said = bed
        .podman(
            ["run", "--rm", "--network=none", &image, "cat", "/file"],
            [] as [&str; 0],
        )
        .output()?
        .success()?;
    same(&said, "new\n")?;
    bed.call(&["rmi", &image])?;
    ensure!(
        !bed.call(&["images", "--quiet", image::BUSYBOX])?.is_empty(),
        "the image is gone"
    );
    Ok(())
}

fn a_name_is_added_to_the_known_ones(bed: &Bed) -> Result<()> {
    let options = ["--rm", "--add-host=somewhere:192.0.2.7"];
    let said = bed
        .run(&options, &["grep", "somewhere", "/etc/hosts"])?
        .success()?;
    ensure!(said.starts_with("192.0.2.7"), "{said}");
    Ok(())
}
