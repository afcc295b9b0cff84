//! READDIR and READDIRPLUS (RFC 1813 §3.3.16, §3.3.17). A position stays valid whatever happens to
//! the directory, so the cookie verifier never changes (R21).

use super::args::HandleArg;
use super::attr::{self, ATTR_BYTES};
use super::call::{Call, Target, held};
use super::export::ExportTable;
use super::handle::{self, HANDLE_BYTES};
use super::reply::Reply;
use super::status::NfsStat;
use super::xdr::Encoder;
use crate::fs::api::{DirCookie, DirEntry, FileSystem, ListLimit, Listing};

/// The largest reply, which FSINFO reports as preferred, in bytes.
pub const DIR_BYTES_MAX: u32 = 128 << 10;
const COOKIE_VERIFIER: [u8; 8] = [0; 8];
/// The bytes around the entries: directory attributes, verifier, end of list, eof.
const FRAME_BYTES: usize = 4 + ATTR_BYTES + 8 + 4 + 4;
/// An entry without the bytes of its name, with the most padding: follows, fileid, length, cookie.
const ENTRY_BYTES: usize = 4 + 8 + 4 + 3 + 8;
/// The bytes that READDIRPLUS adds: attributes and handle, each with its flag.
const PLUS_BYTES: usize = 4 + ATTR_BYTES + 4 + 4 + HANDLE_BYTES;

/// The most bytes that a listing may return.
pub fn listing_bytes(count: u32) -> u32 {
    count.min(DIR_BYTES_MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Names,
    Plus,
}

/// A READDIR or READDIRPLUS.
#[derive(Clone, Copy, Debug)]
pub struct ListArgs {
    pub dir: HandleArg,
    pub after: DirCookie,
    pub verifier: [u8; 8],
    pub count: u32,
    pub form: Form,
}

pub async fn list<T: ExportTable>(call: Call<T>, ask: ListArgs) -> Reply {
    let mut target = match call.target(ask.dir).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_attr(status, None).await,
    };
    let bytes = listing_bytes(ask.count) as usize;
    let listing = async {
        if ask.after != DirCookie::default() && ask.verifier != COOKIE_VERIFIER {
            return Err(NfsStat::BadCookie);
        }
        let entry_bytes = ENTRY_BYTES + if ask.form == Form::Plus { PLUS_BYTES } else { 0 };
        let limit = ListLimit {
            entries: bytes / entry_bytes + 1,
            bytes: bytes.saturating_sub(FRAME_BYTES),
            entry_bytes,
            with_attr: ask.form == Form::Plus,
        };
        held!(
            call,
            target.export,
            target.export.fs.readdir(&call.caller, target.file, ask.after, limit)
        )
    };
    match listing.await {
        Ok(listing) => match encode(&call, &target, &listing, ask.form, bytes) {
            Some(reply) => reply,
            None => call.failed_with_attr(NfsStat::TooSmall, Some(&target)).await,
        },
        Err(status) => call.failed_with_attr(status, Some(&target)).await,
    }
}

/// `None`: not even the first entry fits.
fn encode<T: ExportTable>(
    call: &Call<T>,
    target: &Target<T::Fs>,
    listing: &Listing,
    form: Form,
    bytes: usize,
) -> Option<Reply> {
    let mut out = call.results(
        NfsStat::Ok,
        bytes.min(FRAME_BYTES + listing.entries.len() * (ENTRY_BYTES + PLUS_BYTES + 16)),
    );
    let start = out.len();
    attr::post_op(&mut out, target.export.fsid, Some(&listing.dir));
    out.raw(&COOKIE_VERIFIER);
    let mut sent = 0;
    for entry in &listing.entries {
        let before = out.len();
        self::entry(&mut out, target, entry, form);
        if out.len() - start + 8 > bytes {
            out.truncate(before);
            break;
        }
        sent += 1;
    }
    if sent == 0 && !listing.entries.is_empty() {
        return None;
    }
    out.bool(false).bool(listing.eof && sent == listing.entries.len());
    Some(Reply::small(out))
}

fn entry<F: FileSystem>(out: &mut Encoder, target: &Target<F>, entry: &DirEntry, form: Form) {
    out.bool(true).u64(entry.ino.0).opaque(&entry.name).u64(entry.cookie.0);
    if form == Form::Plus {
        attr::post_op(out, target.export.fsid, entry.attr.as_ref());
        out.bool(entry.attr.is_some());
        if let Some(attr) = &entry.attr {
            handle::encode(out, &target.export.seal(attr.file));
        }
    }
}
