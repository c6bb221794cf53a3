//! The time of an entry: RFC 3339, UTC, in milliseconds. Only from a time to its text.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// A time as `2026-11-28T21:07:41.395Z`. What is before 1970 is 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let ms = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let ((year, month, day), ms) = (date(ms / DAY_MS), ms % DAY_MS);
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{ms:03}Z")
}

/// The date of a day counted from 1970: years are counted from March, so that the leap day is the last one of a year.
fn date(days: u64) -> (u64, u64, u64) {
    // Days since 1 March of the year 0, of the Gregorian calendar continued backwards.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    // Months from March have 31, 30, 31, 30, 31 days, and so on: 153 in five.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(seconds: u64, ms: u64) -> String {
        rfc3339(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(ms))
    }

    #[test]
    fn known_moments_are_written_as_others_write_them() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.001Z");
        assert_eq!(text(1_709_251_199, 0), "2024-02-29T23:59:59.000Z");
        assert_eq!(text(1_795_900_061, 395), "2026-11-28T21:07:41.395Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn each_day_of_five_centuries_follows_the_one_before() {
        let mut expected = (1970, 1, 1);
        for day in 0..182_500 {
            assert_eq!(date(day), expected, "day {day}");
            let (year, month, of_month) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (of_month == last, month == 12) {
                (false, _) => (year, month, of_month + 1),
                (true, false) => (year, month + 1, 1),
                (true, true) => (year + 1, 1, 1),
            };
        }
    }
}
