//! Pages of lists that are read as a whole: a cursor names the last item that was returned, so that
//! pages stay right while items come and go.

use super::shape::Page;
use crate::admin::problem::Problem;
use data_encoding::BASE64URL_NOPAD;

/// Items of a page, unless fewer are asked for.
pub const DEFAULT: usize = 100;
pub const MAX: usize = 1000;

/// The page after a cursor. `items` are in the order of their keys.
pub fn page<T>(
    items: Vec<T>,
    key: impl Fn(&T) -> String,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page<T>, Problem> {
    let after = cursor.map(decode).transpose()?;
    let mut items: Vec<T> = items
        .into_iter()
        .filter(|item| after.as_ref().is_none_or(|after| key(item) > *after))
        .take(limit + 1)
        .collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next =
        items.last().filter(|_| more).map(|last| BASE64URL_NOPAD.encode(key(last).as_bytes()));
    Ok(Page { items, next })
}

fn decode(cursor: &str) -> Result<String, Problem> {
    let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
        Problem::invalid("the cursor was not issued by this server: start over without one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_every_item_once() {
        let items = || ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = page(items(), String::clone, cursor.as_deref(), 2).unwrap();
            seen.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, items());
        let after_gone = BASE64URL_NOPAD.encode(b"bb");
        assert_eq!(page(items(), String::clone, Some(&after_gone), 9).unwrap().items, ["c", "d"]);
        assert!(page(items(), String::clone, Some("?"), 2).is_err());
    }
}
