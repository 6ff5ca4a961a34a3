//! Real network namespaces, real cables, and in place of the machine a test at the other end of its taps. Needs root.

mod attach;
pub(in crate::host) mod pod;
mod trouble;
mod view;
