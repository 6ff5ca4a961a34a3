//! Where to read. Pure.

use std::error::Error;

/// What is read at once, bytes.
pub const PAGE: usize = 4096;

/// How many places are read in a round.
pub const COUNT: usize = 1024;

/// Where the drawing begins: each run reads the same places.
const SEED: u64 = 0x5eed_0f5a_3b1e_5500;

/// Different pages of a file of so many, as offsets in bytes.
///
/// # Errors
/// It has fewer than are read.
pub fn places(pages: u64) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut all: Vec<u64> = (0..pages).map(|page| page * PAGE as u64).collect();
    if all.len() < COUNT {
        return Err(format!("the file has {pages} pages, fewer than the {COUNT} that are read").into());
    }
    let mut state = SEED;
    for place in 0..COUNT {
        // The generator of MMIX (Knuth), of which the high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let left = (all.len() - place) as u128;
        let other = place + ((u128::from(state) * left) >> 64) as usize;
        all.swap(place, other);
    }
    all.truncate(COUNT);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn places_are_different_pages_of_all_the_file() {
        let pages = 16384;
        let drawn = places(pages).unwrap();
        assert_eq!(drawn.len(), COUNT);
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), COUNT);
        assert!(
            drawn
                .iter()
                .all(|place| place % PAGE as u64 == 0 && *place < pages * PAGE as u64)
        );
        // Each quarter has its share.
        for quarter in 0..4 {
            let of_it = drawn
                .iter()
                .filter(|place| **place / (pages * 1024) == quarter)
                .count();
            assert!((200..312).contains(&of_it), "{of_it} of quarter {quarter}");
        }
        // They are not in order.
        assert!(drawn.windows(2).filter(|two| two[0] < two[1]).count() < COUNT * 6 / 10);
    }

    #[test]
    fn a_file_that_is_too_small_is_refused() {
        assert!(
            places(COUNT as u64 - 1)
                .unwrap_err()
                .to_string()
                .contains("1023 pages")
        );
    }
}
