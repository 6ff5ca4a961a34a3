//! Doubles of monitors that are as strict as the published descriptions of their APIs.

mod clh;
mod description;
pub mod double;
mod firecracker;
mod monitor;
mod mutation;
mod promises;
mod schema;
mod sys;

pub use promises::{
    a_monitor_that_is_too_old_is_refused_in_one_sentence, every_request_is_sent_and_wrong_ones_are_refused,
    what_firecracker_lacks_is_refused_before_anything_starts,
};
