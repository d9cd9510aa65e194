package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A policy takes a group of denials out by its name and keeps one call of it
// denied; what it allows is written down. Calls that nobody knows do not exist.
func TestGroupsOfSystemCalls(t *testing.T) {
	b := newBox(t)
	b.policy("seccomp: {allow: [group:debugging], deny: [process_vm_readv]}\negress: {rules: []}\n")
	got := b.ask("sys 101 0x4206 0 0 0", "sys 310 999999 0 0 0 0 0", "sys 425 8 buf", "sys 400", "sys 100000")
	for i, want := range []string{"ESRCH", "EPERM", "EPERM", "ENOSYS", "ENOSYS"} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("answer %d: %s, want %s", i, got[i], want)
		}
	}
	log, err := os.ReadFile(b.auditFile())
	b.must(err)
	if !strings.Contains(string(log), "the policy allows group:debugging") {
		t.Errorf("the audit log does not say what is weakened:\n%s", log)
	}
}

// Under a profile older than the launcher's calls, with a limit that the launcher
// sets, a program starts, and newer calls are answered as the profile alone would
// have: not there.
func TestOldProfile(t *testing.T) {
	b := newBox(t)
	old := narrow()
	names := slices.DeleteFunc(old.Syscalls[0].Names, func(name string) bool {
		return slices.Contains([]string{"prlimit64", "rseq", "pidfd_send_signal", "pidfd_open", "close_range", "openat2", "faccessat2"}, name)
	})
	old.Syscalls[0].Names = names // statx is the newest of them
	b.spec.Linux.Seccomp = old
	b.spec.Process.Rlimits = []oci.POSIXRlimit{{Type: "RLIMIT_AS", Soft: 1 << 42, Hard: 1 << 42}}
	b.policy("egress: {rules: []}\n")
	own := unix.ErrnoName(unix.Errno(unusual))
	got := b.ask("sys 439 0 buf 0 0", "sys 83 buf 0", "sys 302 0 0 0 0", "sys 446 0 0", "sys 39")
	for i, want := range []string{"ENOSYS", own, own, "ENOSYS", "ok"} { // faccessat2 mkdir prlimit64 landlock_restrict_self getpid
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("answer %d: %s, want %s", i, got[i], want)
		}
	}
}
