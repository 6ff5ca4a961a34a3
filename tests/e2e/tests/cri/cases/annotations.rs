//! Annotations that change how a pod's VM is made: which are allowed, the administrator says.

use anyhow::{Result, ensure};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::cri::refusal;
use crate::pod::PodSpec;

chapter!("annotations":
    an_allowed_one(Kata: "runc knows none of them"),
    one_that_is_not_allowed(Kata: "runc knows none of them"),
    one_that_names_a_program(Kata: "runc knows none of them"),
    one_that_is_wrong(Kata: "runc knows none of them"),
    one_that_is_unknown(Kata: "runc knows none of them"),
    those_of_others,
);

/// What all that say something to us begin with.
const PREFIX: &str = "io.katacontainers.config.";

fn with(key: &str, value: &str) -> PodSpec {
    PodSpec::new("annotated").annotation(&format!("{PREFIX}{key}"), value)
}

/// The pod is refused with an error that names the annotation, and nothing is left.
fn refused(bed: &mut Bed, key: &str, value: &str) -> Result<()> {
    refusal(bed.fresh(with(key, value)))?.says(key)?;
    bed.nothing_left()
}

fn an_allowed_one(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(with("hypervisor.default_vcpus", "2"))?;
    same(&pod.output(ContainerSpec::script("nproc"))?, "2")?;
    pod.remove()
}

fn one_that_is_not_allowed(bed: &mut Bed) -> Result<()> {
    refused(bed, "hypervisor.machine_type", "q35")
}

fn one_that_names_a_program(bed: &mut Bed) -> Result<()> {
    refused(bed, "hypervisor.path", "/bin/sh")?;
    refused(bed, "hypervisor.virtio_fs_daemon", "/bin/sh")
}

fn one_that_is_wrong(bed: &mut Bed) -> Result<()> {
    // A negative number means all of the host's, as with Kata.
    for value in ["many", "100000", "1e9", ""] {
        refused(bed, "hypervisor.default_vcpus", value)?;
    }
    // Less than any guest needs.
    refused(bed, "hypervisor.default_memory", "63")
}

fn one_that_is_unknown(bed: &mut Bed) -> Result<()> {
    refused(bed, "hypervisor.default_vcpu", "2")
}

fn those_of_others(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("others").annotation("example.com/note", "ünïcode\n2"))?;
    let annotations = pod.status()?.annotations;
    ensure!(
        annotations
            .get("example.com/note")
            .is_some_and(|note| note == "ünïcode\n2"),
        "{annotations:?}"
    );
    pod.remove()
}
