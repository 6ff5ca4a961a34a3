//! The host's side, with real mounts and daemons. Needs root.

mod cgroup;
mod copies;
mod dead;
mod disk;
mod files;
mod leak;
mod stand;
