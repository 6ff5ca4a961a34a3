//! Containers for real: as root, on this machine's kernel, with Debian's static busybox as the image.
//!
//! Creation clones the process, which must have one thread as the agent has; so this test has its own main, and its cases
//! run one after the other on one thread. An argument selects the cases whose name contains it, as with libtest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod filesystem;
mod fixture;
mod isolation;
mod lifecycle;
mod process;
mod timing;

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rustix::mount::MountPropagationFlags;

type Case = (&'static str, fn() -> LocalBoxFuture<'static, ()>);

/// Lists the cases of a module by the names of its async functions.
macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let cases: [Case; 42] = cases![
        isolation::namespaces_are_new,
        isolation::a_pod_shares_namespaces,
        isolation::the_agents_processes_can_be_asked_for,
        isolation::a_user_namespace_maps_ids,
        isolation::capabilities_are_exact,
        isolation::a_user_without_capabilities_has_none,
        isolation::ambient_capabilities_reach_a_user,
        isolation::seccomp_is_active_in_init_and_exec,
        isolation::seccomp_without_no_new_privileges,
        isolation::no_descriptor_leaks,
        isolation::the_environment_is_the_containers,
        filesystem::the_root_is_the_containers,
        filesystem::masked_paths_are_hidden,
        filesystem::readonly_paths_and_root,
        filesystem::mount_options_are_in_force,
        filesystem::read_only_reaches_submounts_when_asked,
        filesystem::devices_are_there,
        filesystem::devices_are_limited,
        filesystem::links_do_not_divert_mounts,
        filesystem::proc_is_not_diverted,
        filesystem::tmpfs_starts_as_a_copy,
        filesystem::the_cgroup_is_the_containers,
        process::limits_user_groups_and_directory,
        process::home_comes_from_passwd,
        process::host_and_domain_name_and_sysctl,
        process::a_terminal_works,
        process::missing_programs_are_named,
        process::a_program_the_kernel_refuses,
        process::hooks_run_before_the_program,
        process::exec_is_like_init,
        lifecycle::a_paused_container_refuses_exec,
        lifecycle::a_stopped_container_refuses_exec,
        lifecycle::its_mounts_live_until_it_is_deleted,
        lifecycle::a_failed_creation_leaves_nothing,
        lifecycle::deletion_kills_what_is_left,
        lifecycle::nested_cgroups_are_removed,
        lifecycle::limits_are_in_force_or_said_not_to_be,
        lifecycle::what_hangs_is_waited_for_so_long_and_undone_when_nobody_waits,
        timing::create_and_start,
        timing::create_and_start_with_the_pods_network,
        timing::create_and_start_with_a_large_profile,
        timing::exec,
    ];
    // What others mount meanwhile is no leftover of ours.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("needs root");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut failed = Vec::new();
    let mut ran = 0;
    for (name, case) in cases {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        ran += 1;
        let before = fixture::Leftovers::now();
        let result = runtime.block_on(
            AssertUnwindSafe(async {
                case().await;
                before.assert_none().await;
            })
            .catch_unwind(),
        );
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_err() {
            failed.push(name);
        }
    }
    for name in &failed {
        println!("failed: {name}");
    }
    // As libtest says it, for those who count.
    println!(
        "\ntest result: {}. {} passed; {} failed",
        if failed.is_empty() { "ok" } else { "FAILED" },
        ran - failed.len(),
        failed.len()
    );
    std::process::exit(i32::from(!failed.is_empty()));
}
