//! Names of devices and types, and where a device's events live.

use thiserror::Error;

/// The realm (tenant namespace) that is used where none is named.
pub const DEFAULT_REALM: &str = "main";
/// Longest device id, in bytes of UTF-8.
pub const DEVICE_ID_BYTES_MAX: usize = 256;
/// Longest event type, in bytes of UTF-8.
pub const TYPE_BYTES_MAX: usize = 128;

/// Number of a partition of the log, from 0.
pub type PartitionId = u32;
/// Position of an event in its partition, from 0, one a event. Offsets only grow; a gap means that a corrupted
/// block was skipped.
pub type Offset = u64;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadName {
    /// Nothing was given.
    #[error("the {what} is empty")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// Over the limit.
    #[error("the {what} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A character that has a meaning in topics or harms displays.
    #[error(
        "the {what} has the character {character:?} at byte {at}; '/', '+', '#' and control characters are not allowed"
    )]
    Character {
        /// Which name.
        what: &'static str,
        /// The offender.
        character: char,
        /// Byte offset.
        at: usize,
    },
    /// A character that a realm's name does not have.
    #[error(
        "the realm has the character {character:?} at byte {at}; it is made of lower-case letters, digits, '-' and '_'"
    )]
    RealmCharacter {
        /// The offender.
        character: char,
        /// Byte offset.
        at: usize,
    },
}

/// Checks a device id: 1 to [`DEVICE_ID_BYTES_MAX`] bytes, no `/`, `+`, `#` and no control characters, so that it can
/// stand in a topic and in a path.
///
/// # Errors
/// Says which rule is broken, and where.
pub fn check_device_id(id: &str) -> Result<(), BadName> {
    check("device id", id, DEVICE_ID_BYTES_MAX)
}

/// Checks an event type by the same rules as [`check_device_id`], with [`TYPE_BYTES_MAX`].
///
/// # Errors
/// Says which rule is broken, and where.
pub fn check_event_type(event_type: &str) -> Result<(), BadName> {
    check("type", event_type, TYPE_BYTES_MAX)
}

/// Checks a realm's name: 1 to 64 lower-case letters, digits, `-` and `_`, so that it can stand in a path, a user name and
/// the name of a schema.
///
/// # Errors
/// Says which rule is broken, and where.
pub fn check_realm(realm: &str) -> Result<(), BadName> {
    check("realm", realm, 64)?;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    match realm.char_indices().find(|&(_, c)| !is_plain(c)) {
        Some((at, character)) => Err(BadName::RealmCharacter { character, at }),
        None => Ok(()),
    }
}

fn check(what: &'static str, name: &str, bytes_max: usize) -> Result<(), BadName> {
    if name.is_empty() {
        return Err(BadName::Empty { what });
    }
    if name.len() > bytes_max {
        return Err(BadName::TooLong { what, bytes: name.len(), bytes_max });
    }
    // The common case first: printable ASCII without the three reserved characters.
    if name.bytes().all(|b| (0x20..0x7f).contains(&b) && !matches!(b, b'/' | b'+' | b'#')) {
        return Ok(());
    }
    match name.char_indices().find(|(_, c)| matches!(c, '/' | '+' | '#') || c.is_control()) {
        Some((at, character)) => Err(BadName::Character { what, character, at }),
        None => Ok(()),
    }
}

/// The partition that owns a device: FNV-1a (64 bit) of realm, a zero byte and device id, modulo `partitions`.
///
/// The function is part of the data's format: a device's history and order depend on it never changing.
#[must_use]
pub fn partition_of(realm: &str, device_id: &str, partitions: u32) -> PartitionId {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = realm.bytes().chain(std::iter::once(0)).chain(device_id.bytes());
    let hash = bytes.fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // FNV's low bits are weak for short keys: fold the high half in. The remainder fits in u32 by construction.
    ((hash ^ (hash >> 32)) % u64::from(partitions.max(1))) as PartitionId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(check_device_id("truck-7"), Ok(()));
        assert_eq!(check_device_id("été"), Ok(()));
        assert_eq!(check_device_id(""), Err(BadName::Empty { what: "device id" }));
        assert_eq!(
            check_device_id("a/b"),
            Err(BadName::Character { what: "device id", character: '/', at: 1 })
        );
        assert_eq!(
            check_event_type("a\u{0}"),
            Err(BadName::Character { what: "type", character: '\0', at: 1 })
        );
        assert_eq!(check_realm("plant-7_b"), Ok(()));
        assert_eq!(check_realm("Plant"), Err(BadName::RealmCharacter { character: 'P', at: 0 }));
        assert!(check_realm("a/b").is_err() && check_realm("").is_err());
        assert!(matches!(check_device_id(&"x".repeat(257)), Err(BadName::TooLong { bytes: 257, .. })));
    }

    #[test]
    fn partition_is_stable_and_spread() {
        // Fixed values: the function is part of the format on disk.
        assert_eq!(partition_of("main", "dev-1", 1), 0);
        let mut counts = [0u32; 8];
        for device in 0..8000 {
            counts[partition_of("main", &format!("device-{device:05}"), 8) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (800..1200).contains(&n)), "{counts:?}");
    }
}
