//! Golden bytes of a pack: a change here is another format version. `GOLDEN=write` makes the files
//! anew (compression and sealing never give the same bytes twice, so those two are only read back).

use super::*;
use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use std::fs;
use std::path::PathBuf;
use zerofs_csi::chunk::{PackError, Sealing, Trailer, decode_footer};

const SECRET: &str = "golden passphrase";

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/chunk/golden").join(name)
}

fn raw() -> Vec<Bytes> {
    vec![Bytes::from_static(b"hello, pack"), text(1, 300), Bytes::new(), text(2, 200)]
}

async fn written(keyring: &Keyring, codec: Codec) -> (Bytes, Vec<ChunkRef>) {
    let bucket = Bucket::memory();
    let refs = save(&store(&bucket, keyring).packer(CREATOR, Epoch(1), codec), raw()).await;
    (bucket.get(&key(pack(1)), 1 << 20).await.unwrap().unwrap(), refs)
}

fn lines(bytes: &[u8]) -> String {
    bytes.chunks(64).map(|line| HEX.encode(line) + "\n").collect()
}

/// The golden bytes of a name, or the bytes written now if GOLDEN=write asks for new ones.
async fn golden(name: &str, keyring: &Keyring, codec: Codec) -> Bytes {
    if std::env::var("GOLDEN").is_ok_and(|v| v == "write") {
        fs::write(file(name), lines(&written(keyring, codec).await.0)).unwrap();
    }
    let text: String = fs::read_to_string(file(name)).unwrap().split_whitespace().collect();
    HEX.decode(text.as_bytes()).unwrap().into()
}

fn golden_keyring() -> Keyring {
    let path = file("wrapped-key.json");
    if std::env::var("GOLDEN").is_ok_and(|v| v == "write") {
        let wrapped = WrappedKey::create(POOL, &Secret::new(SECRET)).unwrap().0;
        fs::write(&path, serde_json::to_string_pretty(&wrapped).unwrap()).unwrap();
    }
    let wrapped: WrappedKey = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    wrapped.open(POOL, &Secret::new(SECRET)).unwrap()
}

/// A pack written by an earlier build is read by this one.
async fn reads_back(bytes: Bytes, keyring: &Keyring) -> Vec<ChunkRef> {
    let bucket = Bucket::memory();
    bucket.put(&key(pack(1)), bytes).await.unwrap();
    let reader = store(&bucket, keyring);
    let refs = reader.contents(pack(1)).await.unwrap();
    assert_eq!(reader.read(&refs).await.unwrap(), raw());
    refs
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_plain_pack() {
    let golden = golden("plain.hex", &plain(), Codec::None).await;
    let (bytes, refs) = written(&plain(), Codec::None).await;
    assert_eq!(lines(&bytes), lines(&golden));
    assert_eq!(reads_back(golden.clone(), &plain()).await, refs);
    // By hand, so that the layout is told twice.
    assert_eq!(golden[..8], *b"zfpack\x01\x00");
    assert_eq!(golden[8..19], *b"hello, pack");
    let trailer = Trailer::decode(&golden).unwrap();
    assert_eq!((trailer.footer_len, trailer.sealing), (4 * 45, Sealing::Plain));
    let footer = &golden[golden.len() - 44 - 180..golden.len() - 44];
    trailer.check(footer).unwrap();
    let entries = decode_footer(footer).unwrap();
    assert_eq!(footer[..32], entries[0].hash.0);
    assert_eq!(footer[32..45], [8, 0, 0, 0, 11, 0, 0, 0, 11, 0, 0, 0, 0]);
    assert_eq!(golden[golden.len() - 12..], *b"\xb4\0\0\0\0\x01zfpack");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_and_sealed_packs_of_earlier_builds_are_read() {
    let keyring = golden_keyring();
    for (name, keyring, codec) in [
        ("lz4.hex", &plain(), Codec::Lz4),
        ("zstd.hex", &plain(), Codec::Zstd),
        ("sealed-lz4.hex", &keyring, Codec::Lz4),
        ("sealed-none.hex", &keyring, Codec::None),
    ] {
        let refs = reads_back(golden(name, keyring, codec).await, keyring).await;
        assert_eq!(refs.iter().find(|chunk| chunk.raw_len == 300).unwrap().codec, codec, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_program_does_not_know_it_says() {
    let golden = written(&plain(), Codec::None).await.0.to_vec();
    let changed = |at: usize, to: u8| {
        let mut bytes = golden.clone();
        let at = bytes.len() - at;
        bytes[at] = to;
        Trailer::decode(&bytes)
    };
    assert_eq!(changed(7, 2), Err(PackError::Version { version: 2 }));
    assert_eq!(changed(8, 2), Err(PackError::Flags { flags: 2 }));
    assert_eq!(changed(1, b'K'), Err(PackError::Magic));
    assert!(matches!(changed(9, 0xff), Err(PackError::FooterLength { .. })));
    assert_eq!(Trailer::decode(&golden[..40]), Err(PackError::Short { bytes: 40 }));
}

#[tokio::test]
async fn the_bytes_of_a_rewrite_pending_marker() {
    let bucket = Bucket::memory();
    let store = store(&bucket, &plain());
    store.mark_rewrite_pending(&[pack(1), pack(0xabc)]).await.unwrap();
    let listed: Vec<String> = bucket
        .list("rewrite-pending/")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    let key = |n| format!("rewrite-pending/{FAMILY}/{CREATOR}/0000000000000001-{n:016x}");
    assert_eq!(listed, [key(1), key(0xabc)]);
    assert_eq!(bucket.get(&listed[0], 100).await.unwrap().unwrap(), "{\"format\":1}");
    assert_eq!(store.rewrite_pending().await.unwrap(), [pack(1), pack(0xabc)].into());
}
