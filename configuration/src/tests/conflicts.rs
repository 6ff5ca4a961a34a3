//! Values that are right by themselves and not together, and names that are known or not.

use super::{line, load, refused};
use crate::NetworkModel;
use crate::kinds::{Features, Kind as _};
use crate::tree::Value;

#[test]
fn values_that_do_not_fit_together_are_told_with_both_keys() {
    for (text, expected) in [
        (
            "[hypervisor.qemu]\ndefault_maxvcpus = 2\ndefault_vcpus = 3",
            "main:3: hypervisor.qemu.default_vcpus does not fit with hypervisor.qemu.default_maxvcpus: 3 vCPUs are more \
             than the 2 that there may be; lower the one or raise the other",
        ),
        (
            "[hypervisor.qemu]\ndefault_maxmemory = 1024",
            "main:2: hypervisor.qemu.default_maxmemory does not fit with hypervisor.qemu.default_memory: 2048 MiB are \
             more than the 1024 that there may be; lower the one or raise the other",
        ),
        (
            "[hypervisor.qemu]\nvirtio_fs_daemon = \"\"",
            "main:2: hypervisor.qemu.virtio_fs_daemon does not fit with hypervisor.qemu.shared_fs: virtio-fs needs its \
             daemon; set the daemon's path, or shared_fs = \"none\"",
        ),
        (
            "[hypervisor.qemu]\nvhost_user_vsock_daemon = \"\"\n[agent.kata]\nchannel = \"vhost-user-vsock\"",
            "main:4: agent.kata.channel does not fit with hypervisor.qemu.vhost_user_vsock_daemon: vhost-user-vsock \
             needs its daemon; set the daemon's path, or channel = \"auto\"",
        ),
        (
            "[runtime]\ndisable_new_netns = true",
            "main:2: runtime.disable_new_netns does not fit with runtime.internetworking_model: interfaces of the host \
             itself would be the guest's; set internetworking_model = \"none\", or disable_new_netns = false",
        ),
        (
            "[runtime]\ndisable_new_netns = true\ninternetworking_model = \"macvtap\"",
            "main:3: runtime.internetworking_model does not fit with runtime.disable_new_netns: interfaces of the host \
             itself would be the guest's; set internetworking_model = \"none\", or disable_new_netns = false",
        ),
        (
            "[factory]\nvm_cache_number = 1\n[runtime]\ndisable_new_netns = true\ninternetworking_model = \"none\"",
            "main:4: runtime.disable_new_netns does not fit with factory.vm_cache_number: virtual machines that are kept \
             ready have network namespaces; set vm_cache_number = 0, or disable_new_netns = false",
        ),
        (
            "[hypervisor.fake]\npath = \"/a\"\n[runtime]\nenable_agent_pidns = true",
            "main:4: runtime.enable_agent_pidns does not fit with runtime.hypervisor_name: there the agent's processes \
             are the host's; set enable_agent_pidns = false",
        ),
        (
            "[factory]\nvm_cache_number = 1\n[hypervisor.qemu]\nmachine_type = \"microvm\"",
            "main:4: hypervisor.qemu.machine_type does not fit with factory.vm_cache_number: a microvm that is kept ready could \
             be given no devices; set machine_type = \"q35\", or vm_cache_number = 0",
        ),
        (
            "[factory]\nvm_cache_number = 1\n[agent.kata]\nchannel = \"vsock\"",
            "main:4: agent.kata.channel does not fit with factory.vm_cache_number: of all channels only a serial port can be \
             handed over; set channel = \"auto\" or \"virtio-serial\", or vm_cache_number = 0",
        ),
        (
            "[hypervisor.firecracker]\n[factory]\nvm_cache_number = 1",
            "main:3: factory.vm_cache_number does not fit with runtime.hypervisor_name: only virtual machines of QEMU can be \
             kept for others; set vm_cache_number = 0, or use hypervisor_name = \"qemu\"",
        ),
        (
            "[factory]\nenable_template = true\n[hypervisor.qemu]\nmachine_type = \"microvm\"",
            "main:4: hypervisor.qemu.machine_type does not fit with factory.enable_template: copies of a microvm could be \
             given no devices; set machine_type = \"q35\", or enable_template = false",
        ),
        (
            "[factory]\nenable_template = true\n[agent.kata]\nchannel = \"vsock\"",
            "main:4: agent.kata.channel does not fit with factory.enable_template: a vsock device cannot be saved; set \
             channel = \"auto\" or \"virtio-serial\", or enable_template = false",
        ),
        (
            "[factory]\nenable_template = true\n[hypervisor.fake]\npath = \"/a\"",
            "main:2: factory.enable_template does not fit with runtime.hypervisor_name: there is no virtual machine to be \
             copied; set enable_template = false",
        ),
        (
            "[runtime]\nstatic_sandbox_resource_mgmt = false\n[hypervisor.qemu]\nmachine_type = \"microvm\"",
            "main:4: hypervisor.qemu.machine_type does not fit with runtime.static_sandbox_resource_mgmt: a microvm \
             cannot grow; set machine_type = \"q35\", or static_sandbox_resource_mgmt = true",
        ),
        (
            "[hypervisor.firecracker]\nshared_fs = \"virtio-fs\"",
            "main:2: hypervisor.firecracker.shared_fs does not fit with runtime.hypervisor_name: Firecracker has no shared \
             file systems; set shared_fs = \"none\" and use a snapshotter that gives block devices (devmapper, blockfile), \
             or set hypervisor_name = \"qemu\" or \"clh\"",
        ),
        (
            "[hypervisor.firecracker]\n[runtime]\nstatic_sandbox_resource_mgmt = false",
            "main:3: runtime.static_sandbox_resource_mgmt does not fit with runtime.hypervisor_name: a Firecracker cannot \
             grow; set static_sandbox_resource_mgmt = true, or hypervisor_name = \"qemu\" or \"clh\"",
        ),
        (
            "[hypervisor.firecracker]\n[runtime]\ninternetworking_model = \"macvtap\"",
            "main:3: runtime.internetworking_model does not fit with runtime.hypervisor_name: Firecracker opens taps only, \
             and a macvtap is none; set internetworking_model = \"tcfilter\", or hypervisor_name = \"qemu\" or \"clh\"",
        ),
        (
            "[hypervisor.firecracker]\n[factory]\nenable_template = true",
            "main:3: factory.enable_template does not fit with runtime.hypervisor_name: copies of a Firecracker could be \
             given no network; set enable_template = false, or use hypervisor_name = \"qemu\" or \"clh\"",
        ),
        (
            "[hypervisor.clh]\naccelerator = \"tcg\"",
            "main:2: hypervisor.clh.accelerator does not fit with runtime.hypervisor_name: it has no translator; set \
             accelerator = \"auto\", or hypervisor_name = \"qemu\"",
        ),
        (
            "[hypervisor.clh]\nmachine_type = \"microvm\"",
            "main:2: hypervisor.clh.machine_type does not fit with runtime.hypervisor_name: machines of this kind are \
             QEMU's; remove machine_type, or set hypervisor_name = \"qemu\"",
        ),
        (
            "[hypervisor.clh]\njailer_path = \"/usr/bin/jailer\"",
            "main:2: hypervisor.clh.jailer_path does not fit with runtime.hypervisor_name: only Firecracker has a jailer; \
             remove jailer_path, or set hypervisor_name = \"firecracker\"",
        ),
        (
            "[hypervisor.qemu]\nnet_rate_limiter_bw_max_rate = 8",
            "main:2: hypervisor.qemu.net_rate_limiter_bw_max_rate does not fit with runtime.hypervisor_name: this \
             hypervisor limits no devices; set it to 0, or hypervisor_name = \"clh\" or \"firecracker\"",
        ),
        (
            "[hypervisor.qemu]\n[hypervisor.fake]\npath = \"/agent\"",
            "main:2: [hypervisor.fake] is there besides [hypervisor.qemu]: remove one, or select with \
             runtime.hypervisor_name",
        ),
        (
            "# for tests\n[hypervisor.fake]",
            "main:2: hypervisor.fake.path is missing: it has no default, set it to an absolute path",
        ),
        (
            "[runtime]\nhypervisor_name = \"fake\"",
            "main:2: hypervisor.fake.path is missing: it has no default, set it to an absolute path",
        ),
    ] {
        assert_eq!(refused(load(&[text])), expected);
    }
}

#[test]
fn experimental_features_are_known_by_name() {
    for (text, expected) in [
        (
            "[\"nothing\"]",
            "contains \"nothing\": there are no such features, leave the array empty",
        ),
        (
            "[\"a\", \"b\"]",
            "contains \"a\" and \"b\": there are no such features, leave the array empty",
        ),
        (
            "[\"a\", \"b\", \"a\", \"c\"]",
            "contains \"a\", \"b\" and 2 more: there are no such features, leave the array empty",
        ),
        (
            "\"a\"",
            "is the string \"a\", not an array of strings: write [\"a\"]",
        ),
        (
            "[true]",
            "contains true: it takes an array of names, of which there are none at present",
        ),
    ] {
        assert_eq!(
            refused(line("runtime", &format!("experimental = {text}"))),
            format!("main:2: runtime.experimental {expected}")
        );
    }
    // As it is once there are some.
    let read = |names: &[&str]| {
        let names = names.iter().map(|name| Value::Text((*name).to_owned())).collect();
        Features::<NetworkModel>::read(&Value::List(names))
    };
    assert_eq!(
        read(&["none", "macvtap"]),
        Ok(vec![NetworkModel::None, NetworkModel::Macvtap])
    );
    assert_eq!(
        read(&["none", "other"]),
        Err("contains \"other\": it takes an array of \"tcfilter\", \"macvtap\" or \"none\"".to_owned())
    );
    assert_eq!(
        read(&["none", "none"]),
        Err("contains \"none\" twice: remove one".to_owned())
    );
}
