//! Looks up users and groups by name or by number.

use std::ffi::CString;
use std::io::{self, ErrorKind};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};

/// A user id, and the user's entry in the system's user database if there is one.
#[derive(Debug)]
pub(crate) struct Account {
    pub uid: u32,
    /// The user's name and group id from the user database. `None` if the database has no entry for this user id.
    pub record: Option<(CString, u32)>,
}

/// Finds a user by name. If no user has that name and `name` is a number, this number is the user id. The user database
/// need not contain an entry for this id.
pub(crate) fn find_user(name: &str) -> io::Result<Account> {
    if let Some(user) = found(User::from_name(name))? {
        return Account::of(user);
    }
    let uid = parse_id(name).ok_or_else(|| unknown("user", name))?;
    found(User::from_uid(Uid::from_raw(uid)))?.map_or(Ok(Account { uid, record: None }), Account::of)
}

/// Finds a group by name, and returns the group id. If no group has that name and `name` is a number, this number is
/// the group id. The group database need not contain an entry for this id.
pub(crate) fn find_group(name: &str) -> io::Result<u32> {
    let group = found(Group::from_name(name))?;
    group
        .map(|group| group.gid)
        .or(parse_id(name).map(Gid::from_raw))
        .map(Gid::as_raw)
        .ok_or_else(|| unknown("group", name))
}

impl Account {
    fn of(user: User) -> io::Result<Account> {
        Ok(Account { uid: user.uid.as_raw(), record: Some((CString::new(user.name)?, user.gid.as_raw())) })
    }
}

/// Parses a user id or group id. Rejects `u32::MAX`, because system calls such as setresuid(2) and chown(2) interpret
/// this value as "do not change the id".
fn parse_id(name: &str) -> Option<u32> {
    let is_number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|&id| is_number && id != u32::MAX)
}

/// Converts the result of a lookup. Returns `None` for the errors ENOENT and ESRCH, because some systems return these
/// errors if there is no such entry or no database.
fn found<T>(answer: nix::Result<Option<T>>) -> io::Result<Option<T>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        answer => Ok(answer?),
    }
}

fn unknown(what: &str, name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("there is no {what} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_accept_only_existing_names_and_valid_numbers() {
        let root = find_user("root").expect("root");
        assert_eq!((root.uid, root.record.is_some()), (0, true));
        assert!(find_user("0").expect("root").record.is_some_and(|(name, _)| name.as_c_str() == c"root"));
        let unnamed = find_user("4000000001").expect("a number");
        assert_eq!((unnamed.uid, unnamed.record), (4_000_000_001, None));
        assert_eq!(find_group("4000000001").expect("a number"), 4_000_000_001);
        // The first number is `u32::MAX`, which setresuid(2) and chown(2) interpret as "do not change the id".
        for wrong in ["4294967295", "4294967296", "-1", "+1", " 1", "0x1", "", "nobody-of-this-name", "a\0b"] {
            assert_eq!(find_user(wrong).expect_err(wrong).kind(), ErrorKind::NotFound, "{wrong}");
            assert_eq!(find_group(wrong).expect_err(wrong).kind(), ErrorKind::NotFound, "{wrong}");
        }
    }
}
