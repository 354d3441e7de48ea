#!/usr/bin/env bash
# Judges the protos: style and comments (buf.yaml), no breaking change since a commit, docs/API.md as they say.
#
#   proto/check.sh [COMMIT]    the commit to compare with, such as a release's tag; default: the one before the last
#
# Needs what examples/README.md installs for Python, and buf, which stands in an npm package:
#   npm install --prefix target/buf @bufbuild/buf
set -euo pipefail
cd "$(dirname "$0")/.."
since=$(git rev-parse --verify --quiet "${1:-HEAD~1}^{commit}") || {
  echo "${1:-HEAD~1} is no commit of this checkout; a shallow one has no others than the last" >&2
  exit 2
}
buf=target/buf/node_modules/.bin/buf python=target/venv/bin/python
for tool in $buf $python; do
  [ -x "$tool" ] || { echo "$tool is not there; the head of $0 says how it comes" >&2 && exit 2; }
done

status=0
$buf lint proto || status=1
$buf breaking proto --against ".git#ref=$since,subdir=proto" || status=1
$python tools/api_doc.py --check || status=1
[ $status = 0 ] && echo "the protos are in order, and nothing breaks since ${since:0:12}"
exit $status
