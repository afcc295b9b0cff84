//! A pack that is not what was written: every byte, every length, none at all.

use super::*;
use std::time::Duration;
use zerofs_csi::chunk::ChunkError;
use zerofs_csi::types::{Class, Classify};

struct Victim {
    bucket: Bucket,
    keyring: Keyring,
    refs: Vec<ChunkRef>,
    raw: Vec<Bytes>,
    body: Bytes,
}

async fn victim(keyring: Keyring) -> Victim {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &keyring));
    let raw = vec![noise(1, 150), text(2, 400), Bytes::new(), noise(3, 20)];
    let refs = save(&writer, raw.clone()).await;
    let body = bucket.get(&key(pack(1)), 1 << 20).await.unwrap().unwrap();
    Victim { bucket, keyring, refs, raw, body }
}

impl Victim {
    async fn replace(&self, body: Vec<u8>) {
        self.bucket.put(&key(pack(1)), body.into()).await.unwrap();
    }

    /// Every chunk is right or an error that says so; the same for the footer. Answers which were
    /// read.
    async fn reads(&self, what: &str) -> (Vec<bool>, bool) {
        let reader = store(&self.bucket, &self.keyring);
        let mut whole = Vec::new();
        for (chunk, raw) in self.refs.iter().zip(&self.raw) {
            match reader.read(std::slice::from_ref(chunk)).await {
                Ok(data) => assert_eq!(data, std::slice::from_ref(raw), "{what}"),
                Err(error) => {
                    assert_eq!(error.class(), Class::Corrupt, "{what}: {error}");
                    assert!(error.to_string().contains(&pack(1).to_string()), "{error}");
                    if let ChunkError::Corrupt { hash, .. } = error {
                        assert_eq!(hash, chunk.hash);
                    }
                    assert!(reader.cached(&chunk.hash).is_none());
                    whole.push(false);
                    continue;
                }
            }
            whole.push(true);
        }
        match reader.contents(pack(1)).await {
            Ok(found) => {
                let mut refs = self.refs.clone();
                refs.sort_by_key(|chunk| (chunk.offset, chunk.stored_len));
                assert_eq!(found, refs, "{what}");
                (whole, true)
            }
            Err(error) => {
                assert_eq!(error.class(), Class::Corrupt, "{what}: {error}");
                (whole, false)
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_is_an_error_or_does_not_matter() {
    for keyring in [plain(), encrypted()] {
        let victim = victim(keyring).await;
        let chunks_end =
            victim.refs.iter().map(|chunk| chunk.offset + chunk.stored_len).max().unwrap() as usize;
        for byte in 0..victim.body.len() {
            let mut body = victim.body.to_vec();
            body[byte] ^= 1 << (byte % 8);
            victim.replace(body).await;
            let (whole, footer) = victim.reads(&format!("byte {byte}")).await;
            for (chunk, whole) in victim.refs.iter().zip(whole) {
                let hit = (chunk.offset as usize..(chunk.offset + chunk.stored_len) as usize)
                    .contains(&byte);
                // LZ4 has several spellings for data that repeats: a changed one may still mean the
                // same bytes, which were compared.
                let same = !victim.keyring.is_encrypted() && chunk.codec == Codec::Lz4;
                assert!(whole != hit || (whole && same), "byte {byte} of {chunk:?}");
            }
            assert_eq!(footer, byte < chunks_end, "byte {byte}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_pack_is_corrupt_from_where_it_ends() {
    for keyring in [plain(), encrypted()] {
        let victim = victim(keyring).await;
        for len in 0..victim.body.len() {
            victim.replace(victim.body[..len].to_vec()).await;
            let (whole, footer) = victim.reads(&format!("{len} bytes")).await;
            for (chunk, whole) in victim.refs.iter().zip(whole) {
                assert_eq!(
                    whole,
                    chunk.stored_len == 0 || (chunk.offset + chunk.stored_len) as usize <= len,
                    "{len} bytes, {chunk:?}"
                );
            }
            assert!(!footer);
        }
        let mut longer = victim.body.to_vec();
        longer.extend_from_slice(&victim.body);
        victim.replace(longer).await;
        assert!(!victim.reads("twice the pack").await.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_pack_is_lost_data_and_not_a_missing_file() {
    let victim = victim(plain()).await;
    let reader = store(&victim.bucket, &victim.keyring);
    reader.delete(&[pack(1)]).await.unwrap();
    for error in [
        reader.read(&victim.refs[..2]).await.unwrap_err(),
        reader.contents(pack(1)).await.unwrap_err(),
    ] {
        assert!(matches!(error, ChunkError::Missing { .. }), "{error}");
        assert_eq!(error.class(), Class::Corrupt);
        assert!(error.to_string().contains(&pack(1).to_string()), "{error}");
    }
    // A pack that was put back is read: a failure is not cached.
    victim.replace(victim.body.to_vec()).await;
    // Whoever asks while a fetch of the missing pack is still on its way may be told its failure.
    let read_again = async {
        while reader.read(&victim.refs).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read_again).await.expect("the pack is there");
    assert_eq!(reader.read(&victim.refs).await.unwrap(), victim.raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_reference_is_an_error_and_costs_no_memory() {
    let victim = victim(plain()).await;
    let reader = store(&victim.bucket, &victim.keyring);
    let chunk = victim.refs[1];
    let broken = [
        ChunkRef { raw_len: u32::MAX, ..chunk },
        ChunkRef { stored_len: u32::MAX, ..chunk },
        ChunkRef { offset: u32::MAX, ..chunk },
        ChunkRef { offset: 0, ..chunk },
        ChunkRef { raw_len: chunk.raw_len - 1, ..chunk },
        ChunkRef { raw_len: chunk.raw_len + 1, ..chunk },
        ChunkRef { codec: Codec::None, ..chunk },
        ChunkRef { codec: Codec::Zstd, ..chunk },
        ChunkRef { hash: victim.refs[0].hash, ..chunk },
        ChunkRef { offset: chunk.offset + 1, ..chunk },
    ];
    for bad in broken {
        let error = reader.read(&[bad]).await.unwrap_err();
        assert_eq!(error.class(), Class::Corrupt, "{bad:?}: {error}");
    }
    // A good reference beside a bad one to the same data: each has its own answer.
    assert_eq!(reader.read(&[chunk]).await.unwrap(), [victim.raw[1].clone()]);
    let late = reader.read(&[ChunkRef { raw_len: 399, ..chunk }]).await.unwrap_err();
    assert_eq!(late.class(), Class::Corrupt, "also when the data is in memory: {late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_or_another_family_opens_nothing() {
    let victim = victim(encrypted()).await;
    let other = FamilyId::from_bytes([9; 16]);
    let copy = format!("packs/{other}/{}", pack(1));
    victim.bucket.put(&copy, victim.body.clone()).await.unwrap();
    let stranger =
        ChunkStore::new(victim.bucket.clone(), other, &victim.keyring, ChunkCache::memory(1 << 20));
    assert_eq!(stranger.read(&victim.refs[..1]).await.unwrap_err().class(), Class::Corrupt);
    assert_eq!(stranger.contents(pack(1)).await.unwrap_err().class(), Class::Corrupt);
    let keyless = store(&victim.bucket, &plain());
    assert_eq!(keyless.read(&victim.refs[..1]).await.unwrap_err().class(), Class::Corrupt);
    assert_eq!(keyless.contents(pack(1)).await.unwrap_err().class(), Class::Corrupt);
    // A footer belongs to its pack.
    victim.bucket.put(&key(pack(2)), victim.body.clone()).await.unwrap();
    assert_eq!(
        store(&victim.bucket, &victim.keyring).contents(pack(2)).await.unwrap_err().class(),
        Class::Corrupt
    );
}
