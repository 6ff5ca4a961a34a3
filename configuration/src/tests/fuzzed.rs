//! Files and annotations as nobody would write them.

use super::load;
use super::properties::is_fit;
use crate::Config;

#[test]
fn configuration_files() {
    // What it says, without what it says about that.
    let template: String = Config::template()
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    let seeds = [
        template.as_str(),
        "[hypervisor.qemu]\npath = '/opt/qemu'\ndefault_vcpus = -1\n[agent.kata]\nchannel = \"vsock\"\n",
        "[runtime]\ninternetworking_model = 'none'\n[factory]\nenable_template = true\n",
        "hypervisor.qemu.kernel_params = \"a=b 'c d'\"\n[[x]]\n",
    ];
    fuzz::target("configuration-files", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        match load(&[text]) {
            Err(error) => is_fit(&error),
            Ok(config) => {
                let hypervisor = &config.hypervisor;
                assert!((1..=hypervisor.default_maxvcpus).contains(&hypervisor.default_vcpus));
                assert!((1..=4).contains(&hypervisor.default_maxvcpus));
                assert!(hypervisor.default_memory_mib <= hypervisor.default_maxmemory_mib);
                assert!(hypervisor.path.is_absolute() && config.runtime.run_dir.is_absolute());
            }
        }
    });
}

#[test]
fn annotations_of_pods() {
    let everything: Vec<_> = Config::explain().map(|key| format!("'{}'", key.name)).collect();
    let allowed = "[hypervisor.qemu]\ndefault_maxvcpus = 2\nvalid_hypervisor_paths = ['/opt/qemu']\nenable_annotations = ['path', \
         'kernel_params', 'default_vcpus', 'default_max_vcpus', 'default_memory', 'virtio_fs_daemon', 'machine_type']\n";
    let config = load(&[allowed]).unwrap();
    let mut seeds = vec![
        "hypervisor.default_vcpus=2\nhypervisor.kernel_params=quiet a=\"b c\"\n".to_owned(),
        "hypervisor.path=/opt/qemu\nhypervisor.virtio_fs_daemon=/opt/x\nruntime.disable_guest_seccomp=true\n"
            .to_owned(),
        "hypervisor.default_memory=99999999999\nhypervisor.machine_type=q35\nagent.container_pipe_size=1\n"
            .to_owned(),
    ];
    seeds.push(
        everything
            .iter()
            .map(|key| format!("hypervisor.{}=1\n", key.trim_matches('\'')))
            .collect(),
    );
    fuzz::target("annotations", seeds, move |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let annotations = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (format!("io.katacontainers.config.{key}"), value.to_owned()))
            .collect();
        match config.with_annotations(&annotations) {
            Err(error) => is_fit(&error),
            Ok(changed) => {
                let (ours, theirs) = (&config.hypervisor, &changed.hypervisor);
                assert!((1..=2).contains(&theirs.default_vcpus) && theirs.default_maxvcpus <= 2);
                assert!(theirs.default_memory_mib <= ours.default_maxmemory_mib);
                let known = theirs.path == ours.path || ours.valid_hypervisor_paths.contains(&theirs.path);
                assert!(known, "{}", theirs.path.display());
                assert_eq!(theirs.virtio_fs_daemon, ours.virtio_fs_daemon);
                assert_eq!((&theirs.kernel, &theirs.initrd), (&ours.kernel, &ours.initrd));
                assert_eq!(theirs.enable_annotations, ours.enable_annotations);
                assert!(theirs.kernel_params.starts_with(&ours.kernel_params));
                assert_eq!(changed.runtime, config.runtime);
            }
        }
    });
}
