//! A monitor's REST API: HTTP/1.1 with JSON over a unix socket. Must not know which monitor answers.

mod appear;
mod client;
mod limit;
mod litter;
pub(crate) mod message;
mod mounted;

pub use appear::Awaited;
pub use client::Client;
pub use limit::RateLimit;
pub use litter::{Directory, Litter};
pub use mounted::Mounted;

/// Names the requests that a driver can send. All of them are in `CALLS` by that: a test that claims to have tried every one needs
/// only that.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $call:expr;)*) => {
        $($(#[$doc])* pub const $name: Call = $call;)*

        /// All of them.
        pub const CALLS: &[Call] = &[$($name),*];
    };
}
pub(crate) use calls;

/// One request that a driver can send. What it says beyond that is its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `PUT` or `PATCH`.
    pub method: &'static str,
    /// Path, as the monitor's description of its API has it: below the API's own base, with the name of a parameter in braces.
    pub path: &'static str,
    /// The monitor reads or writes the guest's memory or kernel before it answers.
    pub is_slow: bool,
}

impl Call {
    /// A question.
    pub const fn get(path: &'static str) -> Self {
        Self::new("GET", path)
    }

    /// An order.
    pub const fn put(path: &'static str) -> Self {
        Self::new("PUT", path)
    }

    /// A change of what is there.
    pub const fn patch(path: &'static str) -> Self {
        Self::new("PATCH", path)
    }

    const fn new(method: &'static str, path: &'static str) -> Self {
        Self {
            method,
            path,
            is_slow: false,
        }
    }

    /// The same, which may take as long as a guest's memory is large.
    pub const fn slow(self) -> Self {
        Self {
            is_slow: true,
            ..self
        }
    }

    /// The path with `id` for its parameter.
    fn path_for(&self, id: &str) -> String {
        match (self.path.split_once('{'), self.path.split_once('}')) {
            (Some((before, _)), Some((_, after))) => format!("{before}{id}{after}"),
            _ => self.path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_of_the_path_is_filled_in() {
        assert_eq!(Call::put("/drives/{drive_id}").path_for("d0"), "/drives/d0");
        assert_eq!(Call::get("/version").path_for("d0"), "/version");
    }
}
