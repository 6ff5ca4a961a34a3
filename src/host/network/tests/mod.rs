//! Real network namespaces, real cables, and in place of the machine a test at the other end of its taps. Needs root.

mod attach;
mod localhost;
pub(in crate::host) mod pod;
mod trouble;
mod view;
