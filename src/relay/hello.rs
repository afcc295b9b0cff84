//! The first messages of a connection of the channel, the hello of the one that connects and the
//! owner's answer: JSON behind its length, versioned.

use crate::types::{DatasetId, PoolId, SessionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Nodes of one minor version each way must understand it: add fields with defaults.
pub const VERSION: u32 = 1;
const BYTES_MAX: u32 = 4096;

/// The protocol that follows the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Records of NFS calls for the dataset.
    #[default]
    Relay,
    /// Requests to the owners of datasets.
    Requests,
}

/// The session that connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    #[serde(default)]
    pub purpose: Purpose,
    pub pool: PoolId,
    pub dataset: DatasetId,
    /// Its session, whose key it has presented.
    pub session: SessionId,
    /// Names the connection in both logs.
    pub connection: u64,
}

/// The owner's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Records follow.
    Serving,
    /// Requests follow. An older node answers `Serving`, and takes what follows for records.
    TakingRequests,
    /// The peer looks for the owner again.
    NotOwner,
    Refused {
        why: String,
    },
}

pub async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= BYTES_MAX);
    let len = len.ok_or_else(|| io::Error::other("a message that is too long"))?;
    stream.write_all(&[&len.to_be_bytes(), &bytes[..]].concat()).await?;
    stream.flush().await
}

/// # Errors
/// The stream broke, or no such message came.
pub async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let len = stream.read_u32().await?;
    if len > BYTES_MAX {
        return Err(io::Error::other("a message that is too long"));
    }
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, NameKey};

    fn hello() -> Hello {
        let (key, incarnation) = (NameKey::from_bytes([1; 16]), Incarnation::from_bytes([2; 16]));
        Hello {
            version: 1,
            purpose: Purpose::Relay,
            pool: PoolId::from_bytes([3; 16]),
            dataset: DatasetId { key, incarnation },
            session: SessionId::from_bytes([4; 16]),
            connection: 7,
        }
    }

    #[test]
    fn the_bytes_are_fixed() {
        let text = concat!(
            r#"{"version":1,"purpose":"relay","pool":"ambqgaydambqgaydambqgaydam","#,
            r#""dataset":"aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai","#,
            r#""session":"aqcaibaeaqcaibaeaqcaibaeaq","connection":7}"#
        );
        assert_eq!(serde_json::to_string(&hello()).unwrap(), text);
        let requests = Hello { purpose: Purpose::Requests, ..hello() };
        assert!(serde_json::to_string(&requests).unwrap().contains(r#""purpose":"requests""#));
        let more = text.replace("}", r#","later":true}"#);
        assert_eq!(serde_json::from_str::<Hello>(&more).unwrap(), hello());
        for (answer, text) in [
            (Answer::Serving, r#""serving""#),
            (Answer::TakingRequests, r#""taking-requests""#),
            (Answer::NotOwner, r#""not-owner""#),
            (Answer::Refused { why: "x".into() }, r#"{"refused":{"why":"x"}}"#),
        ] {
            assert_eq!(serde_json::to_string(&answer).unwrap(), text);
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
        }
    }

    #[tokio::test]
    async fn messages_have_a_length_that_is_bounded() {
        let mut sent = Vec::new();
        send(&mut sent, &hello()).await.unwrap();
        assert_eq!(receive::<Hello>(&mut &sent[..]).await.unwrap(), hello());
        assert!(receive::<Hello>(&mut &sent[..sent.len() - 1]).await.is_err());
        for bad in [&[0xff; 8][..], &[0, 0, 0, 2, b'{', b'}'], &[]] {
            assert!(receive::<Hello>(&mut &bad[..]).await.is_err(), "{bad:?}");
        }
        let long = Answer::Refused { why: "x".repeat(BYTES_MAX as usize) };
        assert!(send(&mut sent, &long).await.is_err());
    }
}
