//! Inputs that are like others: what an ordinary test tries beside what is known. Deterministic, so that what fails does so
//! again.

/// Where the changes come from: a generator of numbers (xorshift64*), begun with a name.
pub struct Source(u64);

impl Source {
    /// The same numbers for the same name.
    pub fn new(name: &str) -> Self {
        // FNV-1a; never zero, which it would stay.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below this one; 0 below 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from((self.next() >> 11) % bound).unwrap_or(0)
    }

    /// One of these, changed in a few places. By turns each of them.
    pub fn made_of(&mut self, known: &[Vec<u8>], number: usize) -> Vec<u8> {
        let mut input = known
            .get(number % known.len().max(1))
            .cloned()
            .unwrap_or_default();
        for _ in 0..=self.below(4) {
            self.change(&mut input, known);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, known: &[Vec<u8>]) {
        /// What parsers stumble over.
        const TROUBLE: [&[u8]; 12] = [
            b"\0",
            b"\n",
            b"\"",
            b"\\",
            b"%",
            b"..",
            b"/",
            b"-1",
            b"18446744073709551616",
            b"1e999",
            b"null",
            b"\xff\xfe",
        ];
        let at = self.below(input.len() + 1);
        let upto = at + self.below(input.len() - at + 1).min(64);
        match self.below(6) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..upto)),
            2 => {
                let part = input.get(at..upto).unwrap_or_default().to_owned();
                let to = self.below(input.len() + 1);
                input.splice(to..to, part);
            }
            3 => {
                let part = TROUBLE
                    .get(self.below(TROUBLE.len()))
                    .copied()
                    .unwrap_or_default();
                input.splice(at..at, part.iter().copied());
            }
            4 => {
                let other = known.get(self.below(known.len())).map_or(&[][..], Vec::as_slice);
                let from = self.below(other.len() + 1);
                let part = other.iter().skip(from).take(64).copied();
                input.splice(at..upto, part);
            }
            _ => {
                let bit = 1 << self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
        }
    }
}

/// The words of these inputs, as libFuzzer reads a dictionary.
#[cfg(any(fuzzing, test))]
pub fn dictionary(inputs: &[Vec<u8>]) -> String {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let mut words: Vec<String> = inputs
        .iter()
        .flat_map(|input| input.split(|byte| !is_word(byte)))
        .filter(|word| (2..=64).contains(&word.len()))
        .map(|word| format!("\"{}\"\n", String::from_utf8_lossy(word)))
        .collect();
    words.sort();
    words.dedup();
    words.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_has_each_word_once() {
        let inputs = [b"search a.b search; \xff x".to_vec(), b"\"search\":{}".to_vec()];
        assert_eq!(dictionary(&inputs), "\"a.b\"\n\"search\"\n");
    }
}
