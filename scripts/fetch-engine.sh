#!/bin/sh
# Fetches the embedded ClickHouse (libchdb, an npm package) into the cache folder and prints the library's path.
#
# Version and checksum are pinned. The library appears under its final name only when it is whole, so an interrupted
# run leaves nothing behind that a later one would trust, and two runs at once do each other no harm.
set -eu

VERSION=26.7.3-stable.1
LIBRARY=libchdb.so

fail() {
    echo "fetch-engine: $*" >&2
    exit 1
}

cache="${FLEETD_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:?set HOME or FLEETD_CACHE_DIR}/.cache}/fleetd}"
folder="$cache/engine-$VERSION"
if [ -f "$folder/$LIBRARY" ]; then
    echo "$folder/$LIBRARY"
    exit 0
fi

# The sha512 that the registry publishes for each package of this version (`npm view <package> dist.integrity`).
case "$(uname -s)/$(uname -m)" in
Linux/x86_64 | Linux/amd64)
    platform=linux-x64-gnu
    integrity="sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw=="
    ;;
Linux/aarch64 | Linux/arm64)
    platform=linux-arm64-gnu
    integrity=""
    ;;
Darwin/x86_64)
    platform=darwin-x64
    integrity=""
    ;;
Darwin/arm64)
    platform=darwin-arm64
    integrity=""
    ;;
*)
    fail "no ClickHouse library for $(uname -s)/$(uname -m); run a ClickHouse of your own and use --clickhouse-url"
    ;;
esac
# Set it for a platform without a pinned checksum, after checking it against the registry's.
integrity="${FLEETD_ENGINE_INTEGRITY:-$integrity}"
[ -n "$integrity" ] || fail "no checksum is pinned for $platform; compare \`npm view @chdb/lib-$platform@$VERSION dist.integrity\` with a source you trust and set FLEETD_ENGINE_INTEGRITY to it, or use --clickhouse-url"

if [ "$platform" = "linux-x64-gnu" ] || [ "$platform" = "linux-arm64-gnu" ]; then
    if command -v ldd >/dev/null 2>&1 && ldd --version 2>&1 | grep -qi musl; then
        fail "the library needs glibc, and this system has musl; use --clickhouse-url"
    fi
fi
command -v npm >/dev/null 2>&1 || fail "npm is needed to fetch @chdb/lib-$platform; install Node.js (it brings npm) or use --clickhouse-url"
command -v openssl >/dev/null 2>&1 || fail "openssl is needed to check the package's sha512"

mkdir -p "$folder" || fail "cannot make the cache folder $folder; set FLEETD_CACHE_DIR to a writable one"
work="$(mktemp -d "$folder/.fetch.XXXXXX")" || fail "cannot write to $folder"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

echo "fetch-engine: fetching @chdb/lib-$platform@$VERSION (about 180 MB, once)" >&2
(cd "$work" && npm pack --silent "@chdb/lib-$platform@$VERSION" >/dev/null) ||
    fail "npm could not fetch @chdb/lib-$platform@$VERSION; check the network and npm's registry setting"
set -- "$work"/*.tgz
[ -f "$1" ] || fail "npm left no package in $work"

found="sha512-$(openssl dgst -sha512 -binary "$1" | openssl base64 -A)"
[ "$found" = "$integrity" ] || fail "checksum of @chdb/lib-$platform@$VERSION differs: expected $integrity, got $found"

tar -xzf "$1" -C "$work" "package/$LIBRARY" || fail "cannot unpack $LIBRARY; is the disk of $folder full?"
mv -f "$work/package/$LIBRARY" "$folder/$LIBRARY"
echo "$folder/$LIBRARY"
