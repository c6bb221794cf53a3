//! Which numbers of streams have been used: each is accepted once, in any order, within a window behind the highest.

/// How far behind the highest number one may be. An opener never has so many streams between its oldest that is not acknowledged and its newest.
const WINDOW: u64 = 4_096;
const WORDS: usize = (WINDOW / 64) as usize;

/// The numbers that one end's streams have used. Takes 520 bytes, whatever is asked.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// One more than the highest that was accepted.
    next: u64,
    /// Of each number in the window, at its remainder, whether it was accepted.
    used: [u64; WORDS],
}

/// A number that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumberError {
    /// It was accepted before.
    #[error("stream {0} was there before")]
    Used(u64),
    /// It is so old that nobody knows.
    #[error("stream {0} is too old")]
    Old(u64),
    /// It can be no number.
    #[error("there is no stream {0}")]
    Last(u64),
}

impl Default for Numbers {
    fn default() -> Self {
        Self { next: 0, used: [0; WORDS] }
    }
}

impl Numbers {
    /// Accepts this number, once: before there are keys for what is said there, since they may seal one stream. Anybody on the way can say a
    /// number, and use it up; then the stream it belongs to is refused, and the circuit with it.
    ///
    /// # Errors
    /// [`NumberError`]; then nothing has changed.
    pub fn accept(&mut self, number: u64) -> Result<(), NumberError> {
        self.check(number)?;
        if number >= self.next {
            self.forget(number);
            self.next = number + 1;
        }
        self.used[word(number)] |= bit(number);
        Ok(())
    }

    /// Whether this number could be accepted now.
    ///
    /// # Errors
    /// [`NumberError`], as [`Numbers::accept`].
    pub fn check(&self, number: u64) -> Result<(), NumberError> {
        match self.next.checked_sub(number) {
            _ if number == u64::MAX => Err(NumberError::Last(number)),
            Some(behind) if behind > WINDOW => Err(NumberError::Old(number)),
            Some(1..) if self.used[word(number)] & bit(number) != 0 => Err(NumberError::Used(number)),
            _ => Ok(()),
        }
    }

    /// The window moves up to this number: the places of what falls out of it are free.
    fn forget(&mut self, number: u64) {
        if number - self.next >= WINDOW {
            self.used = [0; WORDS];
            return;
        }
        for number in self.next..=number {
            self.used[word(number)] &= !bit(number);
        }
    }
}

fn word(number: u64) -> usize {
    ((number % WINDOW) / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_is_accepted_once_and_never_again(
            steps in prop::collection::vec(prop_oneof![6 => 0u64..6_000, 2 => 0u64..50_000, 1 => any::<u64>()], 0..400),
        ) {
            let (mut numbers, mut used) = (Numbers::default(), BTreeSet::new());
            for number in steps {
                let highest = used.last().copied();
                let in_window = highest.is_none_or(|highest: u64| number > highest || highest - number < WINDOW);
                let fine = number != u64::MAX && in_window && !used.contains(&number);
                prop_assert_eq!(numbers.check(number).is_ok(), fine);
                prop_assert_eq!(numbers.accept(number).is_ok(), fine, "{} after {:?}", number, highest);
                if fine {
                    used.insert(number);
                }
            }
        }
    }

    #[test]
    fn the_window_has_its_size() {
        let mut numbers = Numbers::default();
        numbers.accept(WINDOW).unwrap();
        numbers.accept(1).unwrap();
        assert_eq!(numbers.accept(1), Err(NumberError::Used(1)));
        assert_eq!(numbers.accept(0), Err(NumberError::Old(0)));
        assert_eq!(numbers.accept(u64::MAX), Err(NumberError::Last(u64::MAX)));
        numbers.accept(u64::MAX - 1).unwrap();
        assert_eq!(numbers.accept(WINDOW + 1), Err(NumberError::Old(WINDOW + 1)));
    }
}
