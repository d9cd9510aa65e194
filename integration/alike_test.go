package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What stands in a spec at its edges works as it does under runc: the same
// output, the same exit code, the same complaint.
func TestRunsAsUnderRunc(t *testing.T) {
	limit := func(kind string, n uint64) func(*box) {
		return func(b *box) { b.spec.Process.Rlimits = []oci.POSIXRlimit{{Type: kind, Soft: n, Hard: n}} }
	}
	profile := func(action oci.LinuxSeccompAction) func(*box) {
		return func(b *box) {
			b.spec.Process.NoNewPrivileges = true
			b.spec.Linux.Seccomp = narrow() // without the calls of the launcher
			b.spec.Linux.Seccomp.DefaultAction, b.spec.Linux.Seccomp.DefaultErrnoRet = action, nil
			b.spec.Linux.Seccomp.Syscalls[0].Names = append(b.spec.Linux.Seccomp.Syscalls[0].Names, "fsopen", "fsconfig", "fsmount", "readlink")
		}
	}
	workdir := func(dir string) func(*box) { return func(b *box) { b.spec.Process.Cwd = dir } }
	both := func(changes ...func(*box)) func(*box) {
		return func(b *box) {
			for _, change := range changes {
				change(b)
			}
		}
	}
	user := func(b *box) { b.asUser() }
	sh := func(text string) []string { return []string{"/bin/sh", "-c", text} }
	long := make([]string, 300)
	for i := range long {
		long[i] = strings.Repeat("a", 1024)
	}
	for _, test := range []struct {
		name   string
		change func(*box)
		args   []string
		want   string // stdout
		code   int
	}{
		{"one process", func(b *box) {
			one := int64(1)
			b.spec.Linux.Resources = &oci.LinuxResources{Pids: &oci.LinuxPids{Limit: &one}}
		}, []string{"/bin/echo", "ran"}, "ran\n", 0},
		{"one process of root's", limit("RLIMIT_NPROC", 1), []string{"/bin/echo", "ran"}, "ran\n", 0},
		{"32 MiB of addresses", limit("RLIMIT_AS", 32<<20), []string{"/bin/echo", "ran"}, "ran\n", 0},
		{"32 MiB of addresses, a user", both(user, limit("RLIMIT_AS", 32<<20)), sh("ulimit -v; ulimit -H -v"), "32768\n32768\n", 0},
		{"1 MiB of data, a user", both(user, limit("RLIMIT_DATA", 1<<20)), sh("ulimit -d"), "1024\n", 0},
		{"no new files", limit("RLIMIT_FSIZE", 0), []string{"/bin/true"}, "", 0},
		{"a profile of the barest", profile(oci.ActErrno), []string{"/bin/true"}, "", 0},
		{"a profile of the barest, a user", both(user, profile(oci.ActErrno)), []string{"/bin/true"}, "", 0},
		{"a profile that kills", profile(oci.ActKillProcess), []string{"/bin/true"}, "", 0},
		{"a profile that kills a user's", both(user, profile(oci.ActKillProcess)), []string{"/bin/true"}, "", 0},
		{"what such a profile kills", profile(oci.ActKillProcess), []string{"/bin/ln", "/etc/passwd", "/etc/new"}, "", 128 + int(unix.SIGSYS)},
		{"no profile", func(b *box) { b.spec.Linux.Seccomp = nil }, []string{"/bin/true"}, "", 0},

		{"300 KB of arguments", nil, append(sh(`echo $# ${#300}`), append([]string{"sh"}, long...)...), "300 1024\n", 0},
		{"1 MB of environment", func(b *box) {
			for i := range 1000 {
				b.spec.Process.Env = append(b.spec.Process.Env, fmt.Sprintf("V%d=%s", i, strings.Repeat("v", 1024)))
			}
		}, sh(`set | grep -c ^V; echo ${#V999}`), "1000\n1024\n", 0},
		{"an environment of odd names", func(b *box) { b.spec.Process.Env = append(b.spec.Process.Env, "a.b=c", "EMPTY=") },
			sh(`echo "${EMPTY-unset}"; tr '\0' '\n' </proc/$$/environ | grep a.b`), "\na.b=c\n", 0},

		{"working in the root", workdir("/"), sh("pwd"), "/\n", 0},
		{"working where nothing is", workdir("/new/place"), sh("pwd; touch file && ls"), "/new/place\nfile\n", 0},
		{"working where nothing is, a user", both(user, workdir("/new/place")), sh("pwd"), "/new/place\n", 0},
		{"working in a file", workdir("/etc/passwd"), sh("pwd"), "", 1},
		{"working nowhere", workdir("relative"), sh("pwd"), "", 1},
		{"working where a user may not", both(user, workdir("/closed")), sh("pwd"), "/closed\n", 0},

		{"a name that is not in the path", nil, []string{"no-such-program"}, "", 1},
		{"a file that is not there", nil, []string{"/bin/no-such-program"}, "", 1},
		{"a file that is none", nil, []string{"/etc/passwd"}, "", 1},
		{"a directory", nil, []string{"/etc"}, "", 1},
		{"a relative name", workdir("/bin"), []string{"./echo", "ran"}, "ran\n", 0},
		{"a relative name that is not there", workdir("/bin"), []string{"./no-such-program"}, "", 1},
		{"a program behind a link that leads nowhere", nil, []string{"/bin/dangling"}, "", 1},
		{"an empty name", nil, []string{""}, "", 1},
		{"no name", nil, nil, "", 1},

		{"its exit code", nil, sh("exit 7"), "", 7},
		{"its last exit code", nil, sh("exit 255"), "", 255},
		{"killed from within", nil, sh("sh -c 'kill -KILL $$'; echo $?"), "137\n", 0},
		{"aborted", nil, []string{"/bin/probe", "no-such-verb"}, "error there is no verb no-such-verb\n", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			theirs, ours := underBoth(t, func(b *box) result {
				b.lay(map[string]string{"closed/file": "", "bin/script": "echo ran\n"})
				b.must(os.Chmod(filepath.Join(b.rootfs(), "closed"), 0o700))
				b.must(os.Symlink("nowhere", filepath.Join(b.rootfs(), "bin/dangling")))
				for _, applet := range []string{"ln", "touch", "grep", "tr"} {
					b.must(os.Symlink("busybox", filepath.Join(b.rootfs(), "bin", applet)))
				}
				if test.change != nil {
					test.change(b)
				}
				return b.run(test.args...)
			})
			if theirs.stdout != test.want || theirs.code != test.code {
				t.Errorf("runc: %s\nwant %q, exit %d", theirs, test.want, test.code)
			}
			if ours.stdout != theirs.stdout || ours.code != theirs.code || complaint(ours) != complaint(theirs) {
				t.Errorf("nemoclaw: %s\nrunc: %s", ours, theirs)
			}
		})
	}
}

// Exec ends as it does under runc: by itself, by a signal, or because there is
// no such program. A shell that is not the first program can be asked to end.
func TestExecEndsAsUnderRunc(t *testing.T) {
	sh := func(text string) []string { return []string{"/bin/sh", "-c", text} }
	tests := []struct {
		name  string
		args  []string
		want  string // stdout
		code  int
		flags []string
	}{
		{"well", sh("echo ran"), "ran\n", 0, nil},
		{"with a code", sh("exit 7"), "", 7, nil},
		{"asked to", sh("kill -TERM $$"), "", 128 + int(unix.SIGTERM), nil},
		{"killed", sh("kill -KILL $$"), "", 128 + int(unix.SIGKILL), nil},
		{"crashed", sh("kill -SEGV $$"), "", 128 + int(unix.SIGSEGV), nil},
		{"not in the path", []string{"no-such-program"}, "", 255, nil},
		{"not there", []string{"/bin/no-such-program"}, "", 255, nil},
		{"not a program", []string{"/etc/passwd"}, "", 255, nil},
		{"a directory", []string{"/etc"}, "", 255, nil},
		{"in another directory", sh("pwd"), "/etc\n", 0, []string{"--cwd", "/etc"}},
		{"as another", sh("id -u; id -g"), "1000\n1000\n", 0, []string{"--user", "1000:1000"}},
		{"with more in its environment", sh("echo $A"), "b\n", 0, []string{"--env", "A=b"}},
	}
	theirs, ours := underBoth(t, func(b *box) []result {
		defer b.up().end()
		var ends []result
		for _, test := range tests {
			ends = append(ends, b.execute(slices.Concat(test.flags, []string{b.id}, test.args)...))
		}
		return ends
	})
	for i, test := range tests {
		theirs, ours := theirs[i], ours[i]
		if theirs.stdout != test.want || theirs.code != test.code {
			t.Errorf("%s: runc: %s\nwant %q, exit %d", test.name, theirs, test.want, test.code)
		}
		if ours.stdout != theirs.stdout || ours.code != theirs.code || complaint(ours) != complaint(theirs) {
			t.Errorf("%s: nemoclaw: %s\nrunc: %s", test.name, ours, theirs)
		}
	}
}

// Limits that the launcher sets are those of exec as well.
func TestLimitsHoldInExec(t *testing.T) {
	theirs, ours := underBoth(t, func(b *box) result {
		b.spec.Process.Rlimits = []oci.POSIXRlimit{{Type: "RLIMIT_AS", Soft: 32 << 20, Hard: 48 << 20}, {Type: "RLIMIT_NOFILE", Soft: 64, Hard: 64}}
		b.asUser().spec.Process.Args = []string{"/bin/cat"}
		defer b.up().end()
		return b.execute(b.id, "/bin/sh", "-c", "ulimit -v; ulimit -H -v; ulimit -n")
	})
	if theirs.stdout != "32768\n49152\n64\n" || ours.stdout != theirs.stdout || ours.code != theirs.code {
		t.Errorf("nemoclaw: %s\nrunc: %s", ours, theirs)
	}
}

// underBoth does the same in a box of runc's and in one of nemoclaw's.
func underBoth[R any](t *testing.T, do func(*box) R) (theirs, ours R) {
	t.Helper()
	path, err := runc()
	if err != nil {
		lacking(t, "%v", err)
	}
	b := newBox(t)
	b.runtime = path
	theirs = do(b)
	b.nemoclaw(nil, "delete", "--force", b.id) // before the other looks for what is left
	return theirs, do(newBox(t))
}

// complaint is what a runtime says for itself last, without its name.
func complaint(r result) string {
	last := strings.TrimSpace(r.stderr)
	last = last[strings.LastIndex(last, "\n")+1:]
	if _, said, ok := strings.Cut(last, `level=error msg="`); ok {
		last = strings.ReplaceAll(strings.TrimSuffix(said, `"`), `\"`, `"`)
	}
	for _, name := range []string{"runc run failed: ", "nemoclaw: ", "exec failed: ", "process."} {
		last = strings.TrimPrefix(last, name)
	}
	return strings.ToLower(last[:min(1, len(last))]) + last[min(1, len(last)):]
}
