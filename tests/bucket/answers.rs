//! The bucket against answers of S3 servers, over HTTP.

use crate::support::fault::quick;
use crate::support::s3::{Answer, Fault, Kind, Quirks, Rule, S3Server};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Attribute, Attributes, Error, ObjectStore, PutMode, PutOptions};
use std::time::Duration;
use zerofs_csi::bucket::{Bucket, BucketError, Limits, PutNew};
use zerofs_csi::types::{Class, Classify};

const DATA: Bytes = Bytes::from_static(b"some bytes of an object");

fn pool(server: &S3Server) -> Bucket {
    server.pool("s3://test/pool").with_limits(quick())
}

/// One request of each kind.
async fn each_kind(bucket: &Bucket) {
    assert_eq!(bucket.put_new("new", DATA).await.unwrap(), PutNew::Created);
    bucket.put("a", DATA).await.unwrap();
    assert_eq!(bucket.get("a", 100).await.unwrap(), Some(DATA));
    assert_eq!(bucket.get_range("a", 5..10).await.unwrap(), DATA.slice(5..10));
    assert_eq!(bucket.get_tail("a", 3).await.unwrap(), (DATA.slice(20..), 23));
    assert_eq!(bucket.list("").await.unwrap().len(), 2);
    bucket.delete(&["a".into(), "new".into()]).await.unwrap();
    assert_eq!(bucket.list("").await.unwrap(), []);
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let passing: [(&str, Fault); 6] = [
        ("400 RequestTimeout", Fault::refuse(400, "RequestTimeout")),
        ("500", Fault::refuse(500, "InternalError")),
        ("503", Fault::refuse(503, "SlowDown")),
        ("cut before", Fault::cut()),
        ("cut after", Fault::cut_after()),
        ("cut and late", Fault::cut_late()),
    ];
    for (name, fault) in passing {
        for kind in Kind::ALL {
            println!("{name}: {kind:?}");
            let server = S3Server::start();
            server.script(Rule::on(kind).times(1).then(fault.clone()));
            each_kind(&pool(&server)).await;
            while server.arrive() {}
        }
    }
    let server = S3Server::start();
    server.script(Rule::on(Kind::Get).times(2).then(Fault::cut_body(4)));
    each_kind(&pool(&server)).await;
}

/// Answers to a put-if-absent that conflicts with another request for the object.
fn conflicts() -> [Fault; 3] {
    let (status, code) = (409, "ConditionalRequestConflict");
    [Fault::refuse(status, code), Fault::done_but(status, code), Fault::late_but(status, code)]
}

/// A 409 may be the answer to our own first attempt (R35).
#[tokio::test]
async fn a_conflict_in_progress_is_settled_by_what_is_there() {
    for fault in conflicts() {
        let server = S3Server::start();
        let bucket = pool(&server);
        server.script(Rule::on(Kind::PutNew).times(1).then(fault.clone()));
        assert_eq!(bucket.put_new("mine", DATA).await.unwrap(), PutNew::Created, "{fault:?}");
        server.arrive();
        assert_eq!(bucket.get("mine", 100).await.unwrap(), Some(DATA), "{fault:?}");
        bucket.put("theirs", Bytes::from_static(b"other bytes, as many....")).await.unwrap();
        for _ in 0..2 {
            server.script(
                Rule::on(Kind::PutNew)
                    .at("theirs")
                    .times(1)
                    .then(Fault::refuse(409, "ConditionalRequestConflict")),
            );
            assert_eq!(bucket.put_new("theirs", DATA).await.unwrap(), PutNew::Exists, "{fault:?}");
            bucket.put("theirs", Bytes::from_static(b"shorter")).await.unwrap();
        }
    }
}

/// As SlateDB puts: marked, and tried again only where nothing is decided.
async fn put_marked(
    bucket: &Bucket,
    mark: &str,
    bytes: &'static [u8],
) -> object_store::Result<object_store::PutResult> {
    let mark = [(Attribute::Metadata("slatedbputid".into()), mark.to_owned())];
    let options =
        PutOptions { attributes: Attributes::from_iter(mark), ..PutOptions::from(PutMode::Create) };
    let (store, at) = (bucket.store(), Path::from("wal/1.sst"));
    for _ in 0..20 {
        match store.put_opts(&at, bytes.into(), options.clone()).await {
            Err(Error::Generic { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
            decided => return decided,
        }
    }
    panic!("nothing was decided");
}

#[tokio::test]
async fn a_database_recognises_its_own_object_whatever_the_store_keeps() {
    let lost = [
        Fault::cut_after(),
        Fault::cut_late(),
        Fault::done_but(500, "InternalError"),
        Fault::slow(Duration::from_millis(700)),
    ];
    for drops_metadata in [false, true] {
        for fault in conflicts().into_iter().chain(lost.clone()) {
            let server = S3Server::start();
            server.quirks(|quirks| quirks.drops_metadata = drops_metadata);
            let bucket = pool(&server);
            server.script(Rule::on(Kind::PutNew).times(1).then(fault.clone()));
            put_marked(&bucket, "a", b"rows of the one")
                .await
                .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            server.arrive();
            let other = put_marked(&bucket, "b", b"rows of another").await;
            assert!(matches!(other, Err(Error::AlreadyExists { .. })), "{fault:?}: {other:?}");
            if !drops_metadata {
                let alike = put_marked(&bucket, "b", b"rows of the one").await;
                assert!(
                    matches!(alike, Err(Error::AlreadyExists { .. })),
                    "another's is told by its mark: {alike:?}"
                );
            }
        }
        // Objects that fence writers are empty and all alike: where nothing tells whose one is, it
        // is not ours.
        let server = S3Server::start();
        server.quirks(|quirks| quirks.drops_metadata = drops_metadata);
        let bucket = pool(&server);
        put_marked(&bucket, "a", b"").await.unwrap();
        let other = put_marked(&bucket, "b", b"").await;
        assert!(matches!(other, Err(Error::AlreadyExists { .. })), "{other:?}");
    }
}

/// Any request's answer, its error, and what that must say.
#[tokio::test]
async fn what_does_not_pass_has_its_class_and_names_the_cause_and_the_option() {
    let answers = [
        (Answer::error(403, "RequestTimeTooSkewed"), Class::Unavailable, "set the clock"),
        (Answer::error(400, "ExpiredToken"), Class::Denied, "have expired"),
        (Answer::error(403, "AccessDenied"), Class::Denied, "access denied"),
        (
            Answer::error(403, "SecondLevelDomainForbidden"),
            Class::Precondition,
            "virtual_hosted_style_request",
        ),
        (Answer::page(301, "Moved Permanently"), Class::Precondition, "option region"),
        (Answer::error(301, "PermanentRedirect"), Class::Precondition, "option region"),
        (
            Answer::page(413, "Request Entity Too Large"),
            Class::Precondition,
            "client_max_body_size",
        ),
        (Answer::error(501, "NotImplemented"), Class::Unsupported, "NotImplemented"),
    ];
    for (answer, class, says) in answers {
        let server = S3Server::start();
        let bucket = pool(&server);
        server.script(Rule::any().then(Fault::answer(answer.clone())));
        let errors = [
            bucket.put("a", DATA).await.unwrap_err(),
            bucket.put_new("a", DATA).await.unwrap_err(),
            bucket.get("a", 100).await.unwrap_err(),
            bucket.list("").await.unwrap_err(),
            bucket.delete(&["a".into()]).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.class(), class, "{answer:?}: {error}");
            assert!(error.to_string().contains(says), "{answer:?}: {error}");
        }
        assert_eq!(server.log().len(), 5, "{answer:?}: nothing is tried again");
    }
}

async fn refused_by(
    quirk: impl FnOnce(&mut Quirks),
    says: &str,
    class: Class,
    cure: (&str, &str),
    failing: impl AsyncFn(&Bucket) -> Result<(), BucketError>,
) {
    let server = S3Server::start();
    server.quirks(quirk);
    let error = failing(&pool(&server)).await.unwrap_err();
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(says), "{error}");
    each_kind(&server.pool_with("s3://test/pool", &[cure]).with_limits(quick())).await;
}

#[tokio::test]
async fn the_option_that_an_error_names_helps() {
    let put = async |bucket: &Bucket| bucket.put("a", DATA).await;
    let delete = async |bucket: &Bucket| bucket.delete(&["a".into()]).await;
    let sums = |quirks: &mut Quirks| quirks.wants_checksum = true;
    refused_by(
        sums,
        "checksum_algorithm",
        Class::Precondition,
        ("checksum_algorithm", "sha256"),
        put,
    )
    .await;
    let single = |quirks: &mut Quirks| quirks.refuses_bulk_delete = true;
    refused_by(
        single,
        "disable_bulk_delete",
        Class::Unsupported,
        ("disable_bulk_delete", "true"),
        delete,
    )
    .await;
    let hosted = |quirks: &mut Quirks| quirks.virtual_hosted_only = true;
    refused_by(
        hosted,
        "virtual_hosted_style_request",
        Class::Precondition,
        ("virtual_hosted_style_request", "true"),
        put,
    )
    .await;
}

#[tokio::test]
async fn a_metadata_service_one_hop_too_far_is_named() {
    let server = S3Server::start();
    server.script(Rule::any().then(Fault::hang()));
    let endpoint = server.endpoint();
    let options = [
        ("endpoint", endpoint.as_str()),
        ("metadata_endpoint", endpoint.as_str()),
        ("region", "r"),
        ("allow_http", "true"),
    ];
    let credentials = zerofs_csi::bucket::Credentials::none().with(options);
    let url = "s3://test/pool".parse().unwrap();
    let limits =
        Limits { attempt: Duration::from_secs(8), total: Duration::from_secs(4), ..quick() };
    let bucket =
        Bucket::open(&url, &credentials, zerofs_csi::bucket::Folder::MustExist, limits).unwrap();
    let error = bucket.list("").await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert!(error.to_string().contains("http-put-response-hop-limit"), "{error}");
}

#[tokio::test]
async fn a_key_without_a_name_is_skipped() {
    let server = S3Server::start();
    server.quirks(|quirks| quirks.page_keys = 2);
    let bucket = pool(&server);
    bucket.put("datasets/a", DATA).await.unwrap();
    bucket.put("datasets/z", DATA).await.unwrap();
    for key in ["pool/datasets//x", "pool/datasets//y", "pool/datasets/b//", "pool/datasets/../x"] {
        server.insert(key, b"somebody else's");
    }
    let found: Vec<String> =
        bucket.list("datasets").await.unwrap().into_iter().map(|found| found.key).collect();
    assert_eq!(found, ["datasets/a", "datasets/z"]);
}

#[tokio::test]
async fn every_key_is_below_the_prefix_as_it_was_given() {
    for (url, prefix) in [
        ("s3://test/team~one/p", "team~one/p/"),
        ("s3://test/größe", "größe/"),
        ("s3://test/a[1]", "a[1]/"),
        ("s3://test/a b%25", "a b%/"),
    ] {
        let server = S3Server::start();
        let bucket = server.pool(url).with_limits(quick());
        bucket.put("a", DATA).await.unwrap();
        put_marked(&bucket, "a", b"rows").await.unwrap();
        assert_eq!(server.keys(), [format!("{prefix}a"), format!("{prefix}wal/1.sst")]);
        let found: Vec<String> =
            bucket.list("").await.unwrap().into_iter().map(|found| found.key).collect();
        assert_eq!(found, ["a", "wal/1.sst"]);
        bucket.delete(&found).await.unwrap();
        each_kind(&bucket).await;
        assert_eq!(server.keys(), [""; 0]);
    }
}

#[tokio::test]
async fn a_refused_size_is_remembered_until_it_is_taken() {
    let server = S3Server::start();
    let bucket = pool(&server);
    server.quirks(|quirks| quirks.body_bytes_max = Some(1000));
    bucket.put("small", DATA).await.unwrap();
    assert_eq!(bucket.refusal(), None);
    bucket.put("large", vec![0; 2000].into()).await.unwrap_err();
    bucket.put("small", DATA).await.unwrap();
    let why = bucket.refusal().unwrap();
    assert!(why.contains("2000 bytes") && why.contains("client_max_body_size"), "{why}");
    server.quirks(|quirks| quirks.body_bytes_max = None);
    bucket.put("large", vec![0; 2000].into()).await.unwrap();
    assert_eq!(bucket.refusal(), None);
}
