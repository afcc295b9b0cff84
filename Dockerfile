# A binary on a base that has glibc and nothing to log in with. From the repository's root:
#   docker build -t zerofs-csi .
# glibc, because its malloc is what the limits of memory hold for (src/app/memory.rs).
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin zerofs-csi \
 && strip -o /zerofs-csi target/release/zerofs-csi

FROM gcr.io/distroless/cc-debian12
COPY --from=build /zerofs-csi /zerofs-csi
ENTRYPOINT ["/zerofs-csi"]
