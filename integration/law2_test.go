package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// runcVersion is the version of runc that nemoclaw is built on.
const runcVersion = "v1.5.2"

// runc is a runc of the same version as our libcontainer, built once, or else
// the host's.
var runc = sync.OnceValues(func() (string, error) {
	path, err := cached("runc")
	if err != nil {
		return "", err
	}
	if out, err := exec.Command(path, "--version").Output(); err == nil && strings.Contains(string(out), "1.5.") {
		return path, nil
	}
	dir, _ := cached("")
	build := exec.Command("go", "install", "-tags", "seccomp", "github.com/opencontainers/runc@"+runcVersion)
	build.Dir = os.TempDir() // not in our module
	build.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		if host, herr := exec.LookPath("runc"); herr == nil {
			return host, nil
		}
		return "", fmt.Errorf("cannot build runc: %w: %s", err, out)
	}
	return path, nil
})

// Law 2: what a container may do under nemoclaw it may do under the engine's
// own runtime, given the same spec: nemoclaw takes away and never gives.
func TestLaw2NeverLooserThanTheEngine(t *testing.T) {
	for _, c := range []struct {
		name string
		spec func(*oci.Spec)
	}{
		{"Docker's capabilities", func(*oci.Spec) {}},
		{"no capabilities", func(s *oci.Spec) { setCapabilities(s) }},
		{"one capability, for files only", func(s *oci.Spec) {
			s.Process.Capabilities = &oci.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}
		}},
		{"uid 1000", func(s *oci.Spec) { s.Process.User = oci.User{UID: 1000, GID: 1000}; setCapabilities(s) }},
		{"privileged", func(s *oci.Spec) {
			setCapabilities(s, append([]string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_MODULE", "CAP_DAC_READ_SEARCH"}, dockerCapabilities...)...)
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		}},
		{"read-only root", func(s *oci.Spec) { s.Root.Readonly = true }},
		{"narrow allow-list", func(s *oci.Spec) { s.Linux.Seccomp = narrow(); s.Process.NoNewPrivileges = true }},
		{"deny-list", func(s *oci.Spec) {
			s.Linux.Seccomp = &oci.LinuxSeccomp{DefaultAction: oci.ActAllow, Syscalls: []oci.LinuxSyscall{
				{Names: []string{"landlock_restrict_self", "seccomp", "uname", "mkdir"}, Action: oci.ActErrno, ErrnoRet: &unusual}}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			theirs, ours := survey(t, "runc", c.spec), survey(t, "nemoclaw", c.spec)
			if t.Failed() || t.Skipped() {
				return
			}
			for _, who := range []string{"main", "exec"} {
				compareCapabilities(t, who, theirs[who]["capabilities"], ours[who]["capabilities"])
				compareCalls(t, who, theirs[who]["sweep"], ours[who]["sweep"])
				compareMounts(t, who, theirs[who]["mounts"], ours[who]["mounts"])
				compareNamespaces(t, who, theirs[who]["namespaces"], ours[who]["namespaces"])
			}
		})
	}
}

// unusual is an errno that no system call returns by itself: whoever gets it
// met the profile.
var unusual = uint(unix.EL2HLT)

// narrow is a profile that lets little more pass than a Go program needs: not
// the calls that nemoclaw's launcher makes.
func narrow() *oci.LinuxSeccomp {
	return &oci.LinuxSeccomp{DefaultAction: oci.ActErrno, DefaultErrnoRet: &unusual, Syscalls: []oci.LinuxSyscall{{Action: oci.ActAllow, Names: strings.Fields(`
		read write close fstat newfstatat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack pread64 readv writev
		access pipe2 sched_yield sched_getaffinity mincore madvise dup3 nanosleep clock_nanosleep clock_gettime getpid gettid tgkill clone execve exit
		exit_group wait4 waitid kill uname fcntl getcwd chdir getdents64 getuid getgid geteuid getegid arch_prctl prctl futex epoll_create1 epoll_ctl
		epoll_pwait eventfd2 openat openat2 readlinkat getrandom statx open openat2 unlink lstat stat set_tid_address set_robust_list prlimit64 getrlimit statfs fstatfs capget capset
		setuid setgid setgroups setresuid setresgid unlinkat pidfd_open pidfd_send_signal rseq close_range socket connect sendmsg recvmsg faccessat faccessat2 umask
		setsid ioctl keyctl mount umount2 pivot_root sethostname mkdirat mknodat symlinkat fchdir fchown fchownat lchown fchmod fchmodat unshare setns getppid`)}}}
}

// survey asks the first program and another what they hold, under one runtime:
// runc, nemoclaw, or nemoclaw with the policy that turns it off.
func survey(t *testing.T, runtime string, change func(*oci.Spec)) map[string]map[string]string {
	t.Helper()
	got := map[string]map[string]string{}
	t.Run(runtime, func(t *testing.T) {
		b := newBox(t)
		switch runtime {
		case "runc":
			path, err := runc()
			if err != nil {
				lacking(t, "%v", err)
			}
			b.runtime = path
		case "unconfined":
			b.settings("allow_unconfined: true\n")
			b.flags = []string{"--policy", "unconfined"}
		}
		change(b.spec)
		main := b.up()
		for _, k := range []*talk{main, b.exec()} {
			got[k.name] = map[string]string{}
			for _, what := range []string{"capabilities", "mounts", "namespaces", "sweep"} {
				said, ok := strings.CutPrefix(k.ask(what), "ok ")
				if !ok {
					t.Fatalf("%s: %s: %s", k.name, what, said)
				}
				got[k.name][what] = said
			}
		}
	})
	return got
}

// fields reads "key=value ..." with unique keys; the last one counts.
func fields(s string) map[string]string {
	out := map[string]string{}
	for f := range strings.FieldsSeq(s) {
		k, v, _ := strings.Cut(f, "=")
		out[k] = v
	}
	return out
}

// compareCapabilities: each set is a subset.
func compareCapabilities(t *testing.T, who, theirs, ours string) {
	t.Helper()
	them := fields(theirs)
	for set, hex := range fields(ours) {
		us, _ := strconv.ParseUint(hex, 16, 64)
		engine, _ := strconv.ParseUint(them[set], 16, 64)
		if more := us &^ engine; more != 0 {
			t.Errorf("%s: %s has %x more than the engine's", who, set, more)
		}
	}
}

// compareCalls: a call that the engine's profile denies is denied. What answers
// otherwise than EPERM, ENOSYS or the profile's own errno was let through to the
// kernel.
func compareCalls(t *testing.T, who, theirs, ours string) {
	t.Helper()
	denials := []string{strconv.Itoa(int(unix.EPERM)), strconv.Itoa(int(unix.ENOSYS)), strconv.Itoa(int(unusual))}
	us, tried := fields(ours), 0
	for nr, errno := range fields(theirs) {
		tried++
		if slices.Contains(denials, errno) && !slices.Contains(denials, us[nr]) {
			t.Errorf("%s: system call %s is denied by the engine (errno %s) and passes here (errno %s)", who, nr, errno, us[nr])
		}
	}
	if tried < 300 {
		t.Errorf("%s: only %d system calls were compared", who, tried)
	}
}

// compareMounts: what the engine mounts is mounted with no option less, and
// what is more is read-only or a scratch directory.
func compareMounts(t *testing.T, who, theirs, ours string) {
	t.Helper()
	us := fields(ours)
	them := fields(theirs)
	for point, mount := range them {
		have, ok := us[point]
		if !ok {
			t.Errorf("%s: the engine's mount %s is missing", who, point)
			continue
		}
		_, want, _ := strings.Cut(mount, ":")
		_, got, _ := strings.Cut(have, ":")
		for _, option := range []string{"ro", "nosuid", "nodev", "noexec"} {
			if slices.Contains(strings.Split(want, ","), option) && !slices.Contains(strings.Split(got, ","), option) {
				t.Errorf("%s: %s has lost the option %s: %s", who, point, option, have)
			}
		}
	}
	for point, mount := range us {
		kind, options, _ := strings.Cut(mount, ":")
		o := strings.Split(options, ",")
		scratch := kind == "tmpfs" && slices.Contains(o, "nosuid") && slices.Contains(o, "nodev")
		masked := slices.Contains([]string{"proc", "sysfs", "tmpfs", "devtmpfs"}, kind) && (strings.HasPrefix(point, "/proc/") || strings.HasPrefix(point, "/sys/"))
		if _, known := them[point]; !known && !slices.Contains(o, "ro") && !scratch && !masked {
			t.Errorf("%s: a writable mount that the engine does not have: %s=%s", who, point, mount)
		}
	}
}

// compareNamespaces: what the engine separates from the host stays separated.
func compareNamespaces(t *testing.T, who, theirs, ours string) {
	t.Helper()
	us := fields(ours)
	for kind, ns := range fields(theirs) {
		host, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if ns != host && us[kind] == host {
			t.Errorf("%s: the %s namespace is the host's", who, kind)
		}
	}
}

// Law 10: with the policy "unconfined" nemoclaw is runc, to the last option of a
// mount; and nobody gets that policy whom the host's settings do not let.
func TestLaw10UnconfinedIsRunc(t *testing.T) {
	for _, c := range []struct {
		name string
		spec func(*oci.Spec)
	}{
		{"Docker's capabilities", func(*oci.Spec) {}},
		{"a narrow profile", func(s *oci.Spec) { s.Linux.Seccomp = narrow(); s.Process.NoNewPrivileges = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			theirs, ours := survey(t, "runc", c.spec), survey(t, "unconfined", c.spec)
			if t.Failed() {
				return
			}
			for _, who := range []string{"main", "exec"} {
				for _, what := range []string{"capabilities", "mounts", "sweep"} {
					us := fields(ours[who][what])
					for key, value := range fields(theirs[who][what]) {
						if us[key] != value {
							t.Errorf("%s: %s: %s is %s, and %s under runc", who, what, key, us[key], value)
						}
						delete(us, key)
					}
					for key, value := range us {
						t.Errorf("%s: %s: %s=%s, which runc does not have", who, what, key, value)
					}
				}
				compareNamespaces(t, who, theirs[who]["namespaces"], ours[who]["namespaces"])
				compareNamespaces(t, who, ours[who]["namespaces"], theirs[who]["namespaces"])
			}
		})
	}
	b := newBox(t)
	b.flags = []string{"--policy", "unconfined"}
	if got := b.run("/bin/sh", "-c", "echo ran"); got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, "unconfined") {
		t.Errorf("without allow_unconfined: %s", got)
	}
	b.flags = nil
}

// The spec on disk belongs to the engine: nemoclaw reads it.
func TestLaw2TheSpecIsNotWritten(t *testing.T) {
	b := newBox(t)
	b.saveSpec()
	before, err := os.ReadFile(b.path("bundle/config.json"))
	b.must(err)
	b.up()
	b.execute(b.id, "/bin/true")
	after, err := os.ReadFile(b.path("bundle/config.json"))
	b.must(err)
	if string(before) != string(after) {
		var spec oci.Spec
		t.Errorf("config.json was changed (%v)", json.Unmarshal(after, &spec))
	}
}
