//! Lists in pages. A token is the key of the last item given, so that the next page goes on at the
//! right place whatever was made or deleted meanwhile.

use data_encoding::BASE64URL_NOPAD;
use tonic::Status;

/// The largest page, and that of callers who ask for none.
const ITEMS_MAX: usize = 1000;

/// Cuts a page out of all items, which are in the order of their keys. The second value is the next
/// token, empty at the end.
pub(super) fn cut<T>(
    items: Vec<T>,
    key: impl Fn(&T) -> Vec<u8>,
    token: &str,
    size: u32,
) -> Result<(Vec<T>, String), Status> {
    let after = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| {
        Status::invalid_argument("page_token is not one of this list: start over without it")
    })?;
    let size = match usize::try_from(size).unwrap_or(ITEMS_MAX) {
        0 => ITEMS_MAX,
        size => size.min(ITEMS_MAX),
    };
    let mut left: Vec<T> =
        items.into_iter().filter(|item| token.is_empty() || key(item) > after).collect();
    let more = left.len() > size;
    left.truncate(size);
    let next = left.last().filter(|_| more).map(|last| BASE64URL_NOPAD.encode(&key(last)));
    Ok((left, next.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_end() {
        let page = |token: &str, size| cut(vec![1_u8, 2, 3], |n| vec![*n], token, size);
        let (first, next) = page("", 2).unwrap();
        assert_eq!(first, [1, 2]);
        assert_eq!(page(&next, 2).unwrap(), (vec![3], String::new()));
        assert_eq!(page("", 0).unwrap().0, [1, 2, 3]);
        assert!(page("?", 2).is_err());
        // The entry that the token names is gone.
        let (rest, _) = cut(vec![1_u8, 3], |n| vec![*n], &next, 0).unwrap();
        assert_eq!(rest, [3]);
        let many = cut((0..5000_u32).collect(), |n| n.to_be_bytes().to_vec(), "", 0).unwrap();
        assert_eq!((many.0.len(), many.1.is_empty()), (ITEMS_MAX, false));
    }
}
