//! Values of options, and how they are read.

use crate::catalog::Snapdir;
use crate::chunk::Codec;
use crate::control::SIZE_MIN;
use crate::types::{ByteSize, SizeError, SyncMode, is_owner, parse_bandwidth};
use clap::builder::{PossibleValuesParser, TypedValueParser};

pub(super) fn size(text: &str) -> Result<ByteSize, SizeError> {
    text.parse()
}

/// The modes by name, so that help lists them.
pub(super) fn sync_modes() -> impl TypedValueParser<Value = SyncMode> {
    PossibleValuesParser::new(SyncMode::ALL.map(SyncMode::as_str))
        .try_map(|name| name.parse::<SyncMode>())
}

/// As [`sync_modes`].
pub(super) fn codecs() -> impl TypedValueParser<Value = Codec> {
    PossibleValuesParser::new(Codec::ALL.map(Codec::as_str)).try_map(|name| name.parse::<Codec>())
}

/// As [`sync_modes`].
pub(super) fn snapdirs() -> impl TypedValueParser<Value = Snapdir> {
    PossibleValuesParser::new(Snapdir::ALL.map(Snapdir::as_str))
        .try_map(|name| name.parse::<Snapdir>())
}

/// A quota: a size without its unit would be too small to hold anything.
pub(super) fn quota(text: &str) -> Result<ByteSize, String> {
    let size = size(text).map_err(|error| error.to_string())?;
    if size.0 < SIZE_MIN {
        return Err(format!(
            "{size} is too small: use at least {}, with a unit, like 20Gi",
            ByteSize(SIZE_MIN)
        ));
    }
    Ok(size)
}

pub(super) fn owner(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| is_owner(*number));
    number.ok_or_else(|| format!("{text:?} is not a user or group number from 0 to 4294967294"))
}

pub(super) fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is not an octal mode like 755"))
}

/// A property of a dataset with its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    Size(u64),
    /// `None`: unlimited.
    Inodes(Option<u64>),
    RecordSize(u32),
    /// `None`: by access modes.
    Sync(Option<SyncMode>),
    Compression(Codec),
    Snapdir(Snapdir),
    /// `None`: unlimited, as in those below.
    MaxReadBandwidth(Option<u64>),
    MaxWriteBandwidth(Option<u64>),
    MaxIops(Option<u64>),
}

/// A count, or `none`.
fn count(text: &str) -> Result<Option<u64>, String> {
    match text {
        "none" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("{text:?} is no count, and not none")),
    }
}

/// The bytes of a second, or `none`.
fn bandwidth(text: &str) -> Result<Option<u64>, String> {
    parse_bandwidth(text).map_err(|error| error.to_string())
}

/// `PROPERTY=VALUE`.
pub(super) fn property(text: &str) -> Result<Property, String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("write it as {text}=VALUE"));
    };
    let one_of = |values: &str| format!("{value:?}: use one of {values}");
    Ok(match name {
        "size" => Property::Size(quota(value)?.0),
        "inodes" => Property::Inodes(count(value)?),
        "recordsize" => {
            let size = size(value).map_err(|error| error.to_string())?.0;
            Property::RecordSize(u32::try_from(size).map_err(|_| "at most 1Mi".to_owned())?)
        }
        "sync" if value == "default" => Property::Sync(None),
        "sync" => {
            let mode = value.parse().map_err(|_| one_of("standard, always, disabled, default"))?;
            Property::Sync(Some(mode))
        }
        "compression" => {
            Property::Compression(value.parse().map_err(|_| one_of("none, lz4, zstd"))?)
        }
        "snapdir" => Property::Snapdir(value.parse().map_err(|_| one_of("hidden, visible"))?),
        "maxReadBandwidth" => Property::MaxReadBandwidth(bandwidth(value)?),
        "maxWriteBandwidth" => Property::MaxWriteBandwidth(bandwidth(value)?),
        "maxIops" => Property::MaxIops(count(value)?),
        _ => {
            return Err(format!(
                "there is no property {name:?}: there are size, inodes, recordsize, sync, \
                 compression, snapdir, maxReadBandwidth, maxWriteBandwidth and maxIops"
            ));
        }
    })
}
