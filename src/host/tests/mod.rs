//! The host's side, with real mounts and daemons. Needs root.

mod cgroup;
mod copies;
mod dead;
mod disk;
mod files;
mod fuzzed;
mod label;
mod leak;
mod stage;
mod stand;
