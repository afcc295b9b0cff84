//! Lists in pages. Pure.
//!
//! A token is the id of the last entry given, so that the next page continues at the right place
//! whatever was created or deleted meanwhile, even that entry.

use super::status::{RequestError, invalid};
use std::str::FromStr;

/// The largest page: an answer has to stay below gRPC's 4 MiB.
const ENTRIES_MAX: usize = 5000;

/// Cuts a page out of all entries. `T` is the type of id that a token must be; entries come in any
/// order.
pub(super) fn cut<I, T: FromStr>(
    all: Vec<I>,
    id: impl Fn(&I) -> String,
    token: &str,
    max_entries: i32,
) -> Result<(Vec<I>, String), RequestError> {
    let max = usize::try_from(max_entries)
        .map_err(|_| invalid(format!("max_entries is negative ({max_entries})")))?;
    if !token.is_empty() && token.parse::<T>().is_err() {
        return Err(RequestError::Token(token.chars().take(160).collect()));
    }
    let mut rest: Vec<(String, I)> = all
        .into_iter()
        .map(|item| (id(&item), item))
        .filter(|(id, _)| id.as_str() > token)
        .collect();
    rest.sort_by(|(a, _), (b, _)| a.cmp(b));
    let count = if max == 0 { ENTRIES_MAX } else { max.min(ENTRIES_MAX) };
    let more = rest.len() > count;
    rest.truncate(count);
    let next = rest.last().filter(|_| more).map(|(id, _)| id.clone()).unwrap_or_default();
    Ok((rest.into_iter().map(|(_, item)| item).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(all: &[u32], token: &str, max: i32) -> Result<(Vec<u32>, String), RequestError> {
        cut::<u32, u32>(all.to_vec(), |item| item.to_string(), token, max)
    }

    #[test]
    fn pages_follow_each_other_and_end() {
        assert_eq!(page(&[3, 1, 2], "", 2), Ok((vec![1, 2], "2".into())));
        assert_eq!(page(&[3, 1, 2], "2", 2), Ok((vec![3], String::new())));
        assert_eq!(page(&[1, 2], "", 2), Ok((vec![1, 2], String::new())));
        assert_eq!(page(&[], "", 0), Ok((vec![], String::new())));
    }

    #[test]
    fn a_page_goes_on_after_an_entry_that_is_gone() {
        assert_eq!(page(&[1, 3, 4], "2", 1), Ok((vec![3], "3".into())));
    }

    #[test]
    fn a_foreign_token_and_a_negative_number_are_refused() {
        assert!(matches!(page(&[1], "nonsense", 0), Err(RequestError::Token(_))));
        assert!(matches!(page(&[1], "", -1), Err(RequestError::Invalid(_))));
    }

    #[test]
    fn pages_are_bounded_without_being_asked() {
        let all: Vec<u32> = (0..6000).collect();
        let (first, next) = page(&all, "", 0).unwrap();
        assert_eq!((first.len(), next.is_empty()), (ENTRIES_MAX, false));
    }
}
