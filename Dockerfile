# A static binary on an empty base. From the repository's root:
#   docker build -t zerofs-csi .
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base cmake perl linux-headers ca-certificates
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin zerofs-csi && cp target/release/zerofs-csi /zerofs-csi

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /zerofs-csi /zerofs-csi
ENTRYPOINT ["/zerofs-csi"]
