//! The host's side, with real mounts and daemons. Needs root.

mod cgroup;
mod dead;
mod files;
mod leak;
mod stand;
