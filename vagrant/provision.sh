#!/usr/bin/env bash
# Install nfctl on Debian 12 or 13, and show or test it: see usage() below.
#
# The same script serves a host, CI and a virtual machine. It needs neither systemd nor
# standard input. It may be run again at any time, also after an interrupted run: what is
# already there is kept, what is half made is made anew. Besides Debian packages it changes
# /opt/nfctl and the link /usr/local/bin/nfctl, and nothing else; the tests keep the disk of
# their virtual machine in /var/lib/nfctl-vm.
set -euo pipefail

# What nfctl needs while it runs. iptables brings libxtables, libip4tc and libip6tc, which
# python-iptables loads, and kmod the modprobe that it calls.
RUN_PACKAGES=(iptables ipset iproute2 kmod procps python3)
# What pip needs: python-iptables is a C source on PyPI.
BUILD_PACKAGES=(gcc libc6-dev python3-dev python3-venv)
# What only the tests need. NetfilterQueue, with which inspection is compared, is a C source:
# libnetfilter-queue-dev brings the library itself and the headers of libnfnetlink.
TEST_PACKAGES=(conntrack libnetfilter-queue-dev nftables openssl tmux)
# And what they need on the host only: tshark reads the captures that nfctl writes, graphviz its
# drawings.
HOST_TEST_PACKAGES=(graphviz tshark)

# The modules whose import proves that the C extensions were built and find their libraries.
NEEDED_MODULES="cryptography, iptc, nfctl, pyroute2, scapy, typer"

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PREFIX=/opt/nfctl
VENV=$PREFIX/venv
# The stamp says what the environment holds. It is removed before a change and written after
# it, so that an environment without one is known to be half made.
STAMP=$VENV/stamp
LINK=/usr/local/bin/nfctl
VM_RESULTS=/var/tmp/nfctl-results
# Debian's own, whatever stands first on the caller's PATH.
PYTHON=/usr/bin/python3

usage() {
    cat <<'USAGE'
usage: sudo bash vagrant/provision.sh install | demo | test

  install   install the Debian packages that are missing and nfctl itself (/opt/nfctl)
  demo      install, then run "nfctl demo"
  test      install with the tools of the tests, then run every check and test suite, the
            last ones in a virtual machine (vagrant/vm test), which NFCTL_VM=no leaves out
USAGE
}

fail() {
    local status=$1
    shift
    printf 'provision.sh: %s\n' "$*" >&2
    exit "$status"
}

heading() {
    printf '==> %s\n' "$*"
}

# Run a command; show what it printed only when it fails.
quietly() {
    local status=0
    "$@" >"$WORK/log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        cat "$WORK/log" >&2
    fi
    return "$status"
}

# --- Debian packages ---------------------------------------------------------------------

is_installed() {
    local status
    status=$(dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null) || return 1
    [[ $status == installed* ]]
}

apt() {
    apt-get --yes --quiet \
        -o DPkg::Lock::Timeout=120 \
        -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef \
        -o Dpkg::Options::=--force-confold \
        -o Acquire::Retries=3 \
        "$@"
}

# DPkg::Lock::Timeout does not cover the lock of the package lists, which a freshly booted
# machine holds while its daily update runs.
update_lists() {
    local waited=0
    while ! apt update >"$WORK/log" 2>&1 </dev/null; do
        if ! grep -q 'lists/lock' "$WORK/log" || [ "$waited" -ge 120 ]; then
            cat "$WORK/log" >&2
            printf 'provision.sh: apt-get update failed; trying with the lists at hand\n' >&2
            return 0
        fi
        sleep 5
        waited=$((waited + 5))
    done
}

install_packages() {
    local name missing=()
    for name in "$@"; do
        is_installed "$name" || missing+=("$name")
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        return 0
    fi
    heading "Debian packages: ${missing[*]}"
    update_lists
    if quietly apt install --no-install-recommends "${missing[@]}"; then
        return 0
    fi
    # An earlier run that was killed inside dpkg leaves this to be done first.
    heading "Debian packages, again after dpkg --configure -a"
    quietly dpkg --configure -a
    quietly apt install --no-install-recommends "${missing[@]}"
}

# --- the virtual environment -------------------------------------------------------------

# covers HAVE WANTED: of the extras, "dev" holds "test", and both hold "".
covers() {
    [ "$1" = "$2" ] || [ "$1" = dev ] || [ -z "$2" ]
}

# Everything that decides what gets installed, as one line.
wanted_state() {
    local tree
    tree=$(
        cd "$ROOT"
        find pyproject.toml README.md LICENSE nfctl -type f ! -name '*.pyc' -print0 |
            sort --zero-terminated | xargs --null sha256sum | sha256sum
    )
    printf '%s %s' "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "${tree%% *}"
}

modules_load() {
    "$VENV/bin/python" -I -c "import $NEEDED_MODULES" </dev/null
}

# An environment is kept when it is root's, was finished, belongs to the Python of today
# and still loads its modules.
is_whole() {
    [ -f "$STAMP" ] &&
        [ "$(stat --format=%u "$VENV")" = 0 ] &&
        [ "$(cut -d ' ' -f 1 "$STAMP")" = "$1" ] &&
        modules_load 2>/dev/null
}

pip() {
    "$VENV/bin/python" -I -m pip --disable-pip-version-check --no-input "$@"
}

# install_nfctl EXTRAS: EXTRAS is "", "test" or "dev". What a test installed stays for later runs.
install_nfctl() {
    local extras=$1 state stamp wheel
    [ -x "$PYTHON" ] || fail 3 "$PYTHON is missing"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail 3 "nfctl needs Python 3.11 or newer (Debian 12 or 13); $PYTHON is older"
    if [ -e "$LINK" ] && [ ! -L "$LINK" ]; then
        fail 1 "$LINK is a file that this script did not make; move it away first"
    fi

    install --directory --owner=root --group=root --mode=0755 "$PREFIX"
    exec 9>"$PREFIX/lock"
    flock 9 # two runs at a time would spoil each other's environment

    state=$(wanted_state)
    if ! is_whole "${state%% *}"; then
        heading "virtual environment $VENV"
        rm --recursive --force -- "$VENV"
        quietly "$PYTHON" -I -m venv "$VENV"
    elif stamp=$(cat "$STAMP") && [ "${stamp% *}" = "$state" ] && covers "${stamp##* }" "$extras"; then
        ln --symbolic --force --no-dereference "$VENV/bin/nfctl" "$LINK"
        exec 9>&-
        return 0
    fi

    heading "nfctl and the Python packages that are missing"
    # A wheel first: where it cannot be built, the environment stays as it was.
    quietly pip wheel --no-deps --wheel-dir "$WORK/wheel" "$ROOT"
    rm --force -- "$STAMP"
    quietly pip uninstall --yes nfctl
    wheel=("$WORK"/wheel/nfctl-*.whl)
    # --use-pep517: the older pip of Debian 12 builds python-iptables as Debian 13's does.
    quietly pip install --use-pep517 "${wheel[0]}${extras:+[$extras]}"
    modules_load || fail 1 "installed, but not all of these can be loaded: $NEEDED_MODULES"
    printf '%s %s\n' "$state" "$extras" >"$STAMP"
    ln --symbolic --force --no-dereference "$VENV/bin/nfctl" "$LINK"
    exec 9>&-
}

# --- the tests ---------------------------------------------------------------------------

SUMMARY=()
FAILED=0

# What was not run is neither good nor bad; the summary says why it was not.
skip() {
    SUMMARY+=("$(printf 'SKIPPED %-22s          %s' "$1" "$2")")
}

# stage NAME COMMAND...: run one check, note how it ended and go on. 77 means that this
# machine cannot run it; the reason is in a file.
stage() {
    local name=$1 status=0 started=$SECONDS took
    shift
    heading "$name"
    (cd "$WORK/tree" && "$@") </dev/null || status=$?
    took=$((SECONDS - started))
    printf '    %s: exit %d after %d s\n' "$name" "$status" "$took"
    if [ "$status" -eq 0 ]; then
        SUMMARY+=("$(printf 'ok      %-22s %4d s' "$name" "$took")")
    elif [ "$status" -eq 77 ] && [ -s "$WORK/skipped" ]; then
        skip "$name" "$(cat "$WORK/skipped")"
    else
        SUMMARY+=("$(printf 'FAILED  %-22s %4d s   (exit %d)' "$name" "$took" "$status")")
        FAILED=$((FAILED + 1))
    fi
}

# The stages work on a copy of the checkout: root leaves no files in it, and an
# unprivileged user can read the copy wherever the checkout lies.
copy_checkout() {
    local name
    mkdir "$WORK/tree"
    tar --directory="$ROOT" --create --file=- \
        --exclude-vcs --exclude=.venv --exclude=.vagrant --exclude=__pycache__ --exclude='.*_cache' . |
        tar --directory="$WORK/tree" --extract --file=- --no-same-owner
    chmod --recursive a+rX,go-w "$WORK/tree"
    chmod 0755 "$WORK"
    for name in root nobody; do
        install --directory --owner="$name" --mode=0700 "$WORK/$name"
    done
}

# as USER COMMAND...: with the USER's rights, and with a home and a folder for temporary
# files that are its own. The venv's nfctl stands first on PATH.
as() {
    local user=$1
    shift
    setpriv --reuid="$user" --regid="$(id --group "$user")" --clear-groups \
        env HOME="$WORK/$user" TMPDIR="$WORK/$user" XDG_CACHE_HOME="$WORK/$user" \
        HYPOTHESIS_STORAGE_DIRECTORY="$WORK/$user/hypothesis" \
        PATH="$VENV/bin:$PATH" "$@"
}

# What is tested is the installed nfctl, not the one in the current directory: Python keeps
# the directory off sys.path (also for "python -m nfctl" started by a test), and pytest
# appends it, for the tests' own modules, behind the installed packages. A test that hangs
# for five minutes prints where.
suite() {
    local user=$1
    shift
    as "$user" PYTHONSAFEPATH=1 pytest --import-mode=append -p no:cacheprovider \
        -o faulthandler_timeout=300 "$@"
}

vm_tests() {
    local status=0
    NFCTL_RESULTS=$PREFIX/results bash vagrant/vm test 2>&1 | tee "$WORK/vm.log" || status=$?
    if [ "$status" -eq 77 ]; then
        grep -E '^(vm|build-box): ' "$WORK/vm.log" | tail --lines=1 >"$WORK/skipped"
    fi
    return "$status"
}

run_tests() {
    local line
    copy_checkout
    printf '    Linux %s, %s, %s\n' "$(uname --kernel-release)" "$("$PYTHON" --version)" "$(iptables --version)"
    stage "ruff check" as nobody ruff check --no-cache .
    stage "ruff format" as nobody ruff format --no-cache --check .
    stage "mypy" as nobody mypy --cache-dir="$WORK/nobody/mypy"
    stage "unit tests" suite nobody -n 2 tests/unit
    # Each test has a network of its own and mostly waits, so three at a time. What a lab leaves
    # on the whole machine is looked at alone.
    stage "kernel tests" suite root -n 3 --dist loadfile tests/kernel --ignore-glob='*/test_lab*'
    stage "kernel tests: labs" suite root tests/kernel -k 'test_lab'
    if [ "${NFCTL_VM:-yes}" = no ]; then
        skip "VM tests" "NFCTL_VM=no"
    else
        stage "VM tests" vm_tests
    fi

    heading "summary"
    for line in "${SUMMARY[@]}"; do
        printf '    %s\n' "$line"
    done
    [ "$FAILED" -eq 0 ]
}

# A selection of tests may leave none in one of the folders.
selected() {
    local status=0
    suite root "$@" || status=$?
    if [ "$status" -eq 5 ] && [ "${#WORDS[@]}" -gt 0 ]; then
        return 0
    fi
    return "$status"
}

# run_vm_tests SUITE [--soak MINUTES] [WORD...]: what vagrant/vm runs in the machine; WORDs are
# for pytest. SUITE is "all" or "cards". The reports are where vagrant/vm fetches them.
run_vm_tests() {
    local suite=$1 soak=() leave
    shift
    if [ "${1:-}" = --soak ]; then
        soak=(--soak "$2")
        shift 2
    fi
    WORDS=("$@")
    export NFCTL_IN_VM=1 # the tests may use the machine's own tables
    copy_checkout
    rm --recursive --force -- "$VM_RESULTS"
    install --directory --mode=0755 "$VM_RESULTS"
    case $suite in
    all)
        # The engine against its oracle. What the labs promise, what a SIGKILL leaves and what the
        # shell completes is the same with every kernel; what labs need of one (netem) is among
        # the tests in the machine. Debian's kernel shows no connections in /proc, by which the
        # tests of their marks look. An emulated machine takes ten times as long for all of it,
        # and runs the corpus and the properties of the engine; live packets are tested between
        # its cards, and what systemd has a part in (confirmation, persistence) by itself.
        leave=(interrupted.py completion.py testing.py conntrack_marks.py)
        if [ "${NFCTL_WHOLE:-no}" != yes ]; then
            leave+=(restore_command.py rule_commands.py chain_commands.py doctor.py demo.py map.py
                api.py lock.py 'inspect_*.py' 'apply*.py' undo.py known.py confirm.py guard.py
                rehearsal.py flush.py 'watch*.py' notices.py 'polic*.py' plan_command.py history.py
                sets.py ipset.py persist.py "service*.py" serving_ending.py kube_command.py
                graph_command.py health.py)
        fi
        stage "kernel tests" selected --junitxml="$VM_RESULTS/kernel.xml" tests/kernel \
            --ignore-glob='*/test_lab*' "${leave[@]/#/--ignore-glob=*/test_}" "${WORDS[@]}"
        stage "tests in the machine" selected --junitxml="$VM_RESULTS/inside.xml" tests/vm/inside \
            "${soak[@]}" "${WORDS[@]}"
        ;;
    cards)
        stage "tests of the cards" selected --junitxml="$VM_RESULTS/inside.xml" -m nic tests/vm/inside \
            "${WORDS[@]}"
        ;;
    esac
    [ "$FAILED" -eq 0 ]
}

# --- the command -------------------------------------------------------------------------

# The other commands are for vagrant/build-box and vagrant/vm: "packages" prints the names of
# the Debian packages, "need NAME..." installs them where they are missing, "vminstall" and
# "vmtest SUITE ..." install and run what is tested in a machine.
case ${1:-}:$# in
packages:1)
    printf '%s\n' "${RUN_PACKAGES[@]}" "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
    exit 0
    ;;
install:1 | demo:1 | test:1 | need:* | vminstall:1 | vmtest:*) ;;
*)
    usage >&2
    exit 2
    ;;
esac
if [ "$(id -u)" -ne 0 ]; then
    fail 3 "needs root: sudo bash vagrant/provision.sh $1"
fi

# The same surroundings for every caller: files that others can read and only root can
# write, Debian's programs first, and no Python but the one chosen above.
umask 022
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
command -v apt-get >/dev/null || fail 3 "needs Debian's apt-get"

WORK=$(mktemp --directory --tmpdir nfctl-provision.XXXXXX)
trap 'rm --recursive --force --one-file-system -- "$WORK"' EXIT

case $1 in
need)
    install_packages "${@:2}"
    ;;
install)
    install_packages "${RUN_PACKAGES[@]}" "${BUILD_PACKAGES[@]}"
    install_nfctl ""
    ;;
demo)
    install_packages "${RUN_PACKAGES[@]}" "${BUILD_PACKAGES[@]}"
    install_nfctl ""
    "$LINK" demo
    ;;
test)
    install_packages "${RUN_PACKAGES[@]}" "${BUILD_PACKAGES[@]}" \
        "${TEST_PACKAGES[@]}" "${HOST_TEST_PACKAGES[@]}"
    install_nfctl dev
    run_tests
    ;;
vminstall | vmtest)
    install_packages "${RUN_PACKAGES[@]}" "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
    install_nfctl test
    if [ "$1" = vmtest ]; then
        run_vm_tests "${@:2}"
    fi
    ;;
esac
