#!/bin/sh
# check.sh VERSION: whether there is a way from every released version to the one that is being built.
#
# Each released version is kept in release/, and leads by one script to the next one, the last of them to VERSION.
# A database then takes as many steps as it needs. There is no script that nobody needs.
set -eu
version=$1
cd "$(dirname "$0")"

fail() {
    echo "sql/upgrade: $1" >&2
    exit 1
}

for released in $(sed -n '/unreleased/d; s/^## \([0-9][^ ]*\).*/\1/p' ../../CHANGELOG.md); do
    [ -d "release/$released" ] || [ "$released" = "$version" ] ||
        fail "version $released was released, but release/$released is missing: \`make freeze\` in its sources makes it"
done

expected=
previous=
for next in $({ echo "$version"; ls release 2>/dev/null || :; } | sort -u -t. -k1,1n -k2,2n -k3,3n); do
    script=pgqueue--$previous--$next.sql
    if [ -n "$previous" ]; then
        [ -f "$script" ] || fail "$script is missing: a database with version $previous could not be upgraded"
        expected="$expected $script"
    fi
    previous=$next
done
[ "$previous" = "$version" ] || fail "version $version is older than $previous, which was released"

for script in pgqueue--*.sql; do
    case "$expected " in
        *" $script "*) ;;
        *) [ ! -e "$script" ] || fail "$script leads nowhere: the chain is${expected:- empty}" ;;
    esac
done
