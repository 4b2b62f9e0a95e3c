#!/bin/sh
# Builds a real kube-apiserver and its etcd into var/kube, from their published Go modules, for the tests marked `kubernetes`.
# Once: eight CPU minutes and 3 GB of disk while it builds, 130 MB afterwards. Needs Go 1.26.
# Nothing of it is committed. `sh deploy/kube-apiserver.sh 1.37.2` builds another release in its place.
set -eu
cd "$(dirname "$0")/.."
version=${1:-1.36.3}
home=$PWD/var/kube
[ -f "$home/version" ] && [ "$(cat "$home/version")" = "$version" ] && exit 0
command -v go >/dev/null 2>&1 || { echo "kube-apiserver: needs Go 1.26 or newer on PATH" >&2; exit 1; }

build=$home/build
mkdir -p "$build" "$home/bin"
export GOPATH="$build/path" GOCACHE="$build/cache" GOFLAGS="-mod=mod -modcacherw"
cd "$build"

# Kubernetes names its own libraries by folders of its source tree: here they are the published modules of the same release.
# The rest, etcd among it, is what this release of Kubernetes asks for; Go checks every module against its checksum database.
needs=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^.*"GoMod": "\(.*\)",$/\1/p')
{
    echo "module kube"
    sed -n '/^go /p' "$needs"
    echo "require k8s.io/kubernetes v$version"
    sed -n "s|^[[:space:]]*\(k8s.io/[^ ]*\) => ./staging/.*|replace \1 => \1 v0.${version#1.}|p" "$needs"
} > go.mod

echo "kube-apiserver $version: compiling, some five minutes on two cores"
go build -trimpath -ldflags "-s -w" -o "$home/bin/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
go build -trimpath -ldflags "-s -w" -o "$home/bin/etcd" go.etcd.io/etcd/server/v3
cd "$home"
rm -rf "$build"
bin/etcd --version | sed -n 1p
echo "$version" > version
