package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
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

// Docker's default is the same filter whether the engine gives it, and
// libcontainer loads it, or gives none, and the launcher does: at create and at
// exec, for root and not. Only foreign calls, for which libcontainer's ends the
// thread, are told no.
func TestDefaultProfile(t *testing.T) {
	for _, c := range []struct {
		engine, foreign string
	}{{"gives none", "EPERM"}, {"gives an empty one", "EPERM"}, {"gives Docker's", "error killed"}} {
		t.Run(c.engine, func(t *testing.T) {
			b := newBox(t)
			b.asUser()
			switch c.engine {
			case "gives an empty one":
				b.spec.Linux.Seccomp = &oci.LinuxSeccomp{}
			case "gives Docker's":
				var err error
				b.spec.Linux.Seccomp, err = mobyseccomp.GetDefaultProfile(b.spec)
				b.must(err)
			}
			b.policy("egress: {rules: []}\n")
			main := b.up()
			for _, k := range []*talk{main, b.exec(), b.exec("--user", "0:0")} {
				k.want("ok 2", "status Seccomp_filters")
				k.want("EPERM", "sys 239 0 0 0 0 0") // get_mempolicy(2): the kernel would answer
				k.want("EPERM", "sys 321 0xffffffff 0 0")
				k.want("ENOSYS", "sys 435 0 0")
				k.want("ok", "sys 39")
				k.want(c.foreign, "x32 39")
				k.want(c.foreign, "i386 20")
			}
			p, code := b.prove()
			if code != 0 {
				t.Errorf("status: exit %d: %+v", code, p)
			}
		})
	}
}

// Without the first filter nothing is executed, whoever took it out of what was
// stored.
func TestExecWithoutTheFirstFilter(t *testing.T) {
	b := newBox(t)
	b.up().want("ok 2", "status Seccomp_filters")
	b.rewriteConfined(func(c map[string]any) { delete(c, "first") })
	if got := b.execute(b.id, "/bin/probe", "serve"); got.code == 0 || !strings.Contains(got.stderr, "the first seccomp filter is missing") {
		t.Errorf("exec: %s", got)
	}
}
