//! Times as protobuf writes them. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;

/// A time; before 1970 there is none.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_keep_their_nanoseconds() {
        let told = timestamp(UNIX_EPOCH + Duration::new(5, 7));
        assert_eq!((told.seconds, told.nanos), (5, 7));
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), Timestamp::new());
    }
}
