//! The parts of requests that handlers take: each is read once, and an error in it is a problem
//! that names it.

use crate::admin::access::Authenticated;
use crate::admin::problem::Problem;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;
use std::collections::HashMap;

/// Parameters of one query.
const PARAMS_MAX: usize = 2000;

/// The parameters of a query. Their values are bytes: a path need not be UTF-8. `+` is a space, as
/// forms write it.
#[derive(Debug, Default)]
pub struct Query(HashMap<String, Vec<Vec<u8>>>);

impl Query {
    fn parse(text: &str) -> Result<Self, Problem> {
        let mut all: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        for (n, pair) in pairs.enumerate() {
            if n >= PARAMS_MAX {
                return Err(Problem::invalid(format!("more than {PARAMS_MAX} parameters")));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8(decode(name))
                .map_err(|_| Problem::invalid("the name of a parameter is not UTF-8"))?;
            all.entry(name).or_default().push(decode(value));
        }
        Ok(Self(all))
    }

    /// Refuses parameters that the request does not have.
    pub fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let name: String = name.chars().take(64).collect();
                let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(Problem::invalid(format!("unknown parameter {name:?}; there are: {there}")))
            }
        }
    }

    /// A parameter that may be given once; an empty one counts as left out.
    pub fn bytes(&self, name: &str) -> Result<Option<&[u8]>, Problem> {
        match self.all(name) {
            [] => Ok(None),
            [one] => Ok(Some(one.as_slice()).filter(|value| !value.is_empty())),
            _ => Err(Problem::invalid(format!("parameter {name} is given more than once"))),
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let not_utf8 = |_| Problem::invalid(format!("parameter {name} is not UTF-8"));
        self.bytes(name)?.map(|value| std::str::from_utf8(value).map_err(not_utf8)).transpose()
    }

    /// Every value of a parameter that may be repeated.
    pub fn all(&self, name: &str) -> &[Vec<u8>] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// `true` or `false`; false when left out.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::invalid(format!("parameter {name} is true or false"))),
        }
    }

    /// A number from 1 to `max`.
    pub fn limit(&self, default: usize, max: usize) -> Result<usize, Problem> {
        let Some(text) = self.text("limit")? else { return Ok(default) };
        let wrong = || Problem::invalid(format!("parameter limit is a number from 1 to {max}"));
        let number = text.parse().ok().filter(|number| (1..=max).contains(number));
        number.ok_or_else(wrong)
    }

    /// An absolute path.
    pub fn path(&self, name: &str) -> Result<Option<&[u8]>, Problem> {
        self.bytes(name)?.map(absolute).transpose()
    }
}

fn decode(text: &str) -> Vec<u8> {
    let spaced: Vec<u8> = text.bytes().map(|byte| if byte == b'+' { b' ' } else { byte }).collect();
    percent_decode(&spaced).collect()
}

/// Refuses a path that is not written as it is: relative, with empty or dotted names, with NUL.
pub fn absolute(path: &[u8]) -> Result<&[u8], Problem> {
    let wrong = |why: &str| {
        let shown: String = path.escape_ascii().to_string().chars().take(200).collect();
        Err(Problem::invalid(format!("path \"{shown}\": {why}")))
    };
    let Some(names) = path.strip_prefix(b"/") else {
        return wrong("it is not absolute: begin it with /");
    };
    if path.contains(&0) {
        return wrong("no name has a NUL in it");
    }
    let dotted = |name: &[u8]| matches!(name, b"" | b"." | b"..");
    match names.is_empty() || !names.split(|byte| *byte == b'/').any(dotted) {
        true => Ok(path),
        false => wrong("a name in it is empty, `.` or `..`: write it without"),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Authenticated {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let known = parts.extensions.get::<Self>().cloned();
        known.ok_or_else(|| Problem::unauthenticated("log in, or send a token"))
    }
}

/// The names in the path of a request.
pub struct PathParams<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathParams<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(error) => Err(Problem::invalid(format!("names in the URL: {}", error.body_text()))),
        }
    }
}

/// A body of JSON.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(JsonRejection::BytesRejection(error))
                if error.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(Problem::too_large("the body is too large: ask for less at once"))
            }
            Err(error) => Err(Problem::invalid(format!("body: {}", error.body_text()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_bytes() {
        let query = Query::parse("path=/a%ff%2Fb+c&path=%2f&limit=5&x=&flag=true").unwrap();
        assert_eq!(query.all("path"), [b"/a\xff/b c".to_vec(), b"/".to_vec()]);
        assert_eq!(query.limit(1, 10).unwrap(), 5);
        assert_eq!(query.bytes("x").unwrap(), None);
        assert!(query.flag("flag").unwrap() && !query.flag("other").unwrap());
        assert!(query.bytes("path").is_err(), "given twice");
        assert!(query.only(&["path", "limit", "x"]).is_err(), "flag is not known");
        for wrong in ["limit=0", "limit=11", "limit=-1", "limit=x", "limit=1&limit=2"] {
            assert!(Query::parse(wrong).unwrap().limit(1, 10).is_err(), "{wrong}");
        }
        assert!(Query::parse(&"a&".repeat(PARAMS_MAX + 1)).is_err());
    }

    #[test]
    fn paths_are_written_as_they_are() {
        for good in [&b"/"[..], b"/a", b"/a/b c", b"/\xff\n", b"/...", b"/..a/b.."] {
            assert!(absolute(good).is_ok(), "{good:?}");
        }
        for bad in [
            &b"a"[..],
            b"/../a",
            b"/a/..",
            b"/a//b",
            b"//",
            b"/a/",
            b"/./a",
            b"/a\0b",
            b"..",
            b"\\",
        ] {
            assert!(absolute(bad).is_err(), "{bad:?}");
        }
    }
}
