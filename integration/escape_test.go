package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/escape"
)

// enough is how many attempts there are at least, and enoughOfAKind in each
// group: none is lost unseen.
const enough, enoughOfAKind = 400, 15

// TestEscapes tries every way out that was found so far, in the first process
// and in exec, as root with what Docker grants and as uid 1000. What proves that
// an attempt is one is tried as well: under runc it works, or its neighbour does
// in the sandbox.
func TestEscapes(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("numbers of amd64")
	}
	if n := escape.Count(); n < enough {
		t.Errorf("there are %d attempts, which were %d", n, enough)
	}
	for _, g := range escape.Groups {
		if len(g.Attempts) < enoughOfAKind || len(g.Controls) == 0 {
			t.Errorf("%s: there are %d attempts and %d controls", g.Name, len(g.Attempts), len(g.Controls))
		}
	}
	var free []map[int]string
	for _, capabilities := range [][]string{dockerCapabilities, privileged} {
		t.Run(fmt.Sprintf("under runc with %d capabilities", len(capabilities)), func(t *testing.T) {
			path, err := runc()
			if err != nil {
				lacking(t, "%v", err)
			}
			b := newBox(t)
			b.runtime = path
			b.target()
			setCapabilities(b.spec, capabilities...)
			main, other := b.up(), b.exec()
			answers := map[int]string{}
			escape.Each(func(n int, _ escape.Group, a escape.Attempt) {
				if !strings.HasPrefix(a.Proof, "+ ") {
					answers[n] = main.try(a.Do, n, other)
				}
			})
			free = append(free, answers)
		})
	}
	if t.Failed() || t.Skipped() || len(free) != 2 {
		return
	}
	escape.Each(func(n int, g escape.Group, a escape.Attempt) {
		if strings.HasPrefix(a.Proof, "+ ") {
			return
		}
		for _, answers := range free {
			if escape.Fits(answers[n], a.Proof) && !escape.Fits(answers[n], a.Want) {
				return
			}
		}
		if newerKernel(t, a.Source) {
			t.Logf("%s: %s (%s): this kernel is older", g.Name, a.Name, a.Source)
			return
		}
		t.Errorf("%s: %s (%s): under runc %s: %s, and privileged: %s, want %s and not %s: it proves nothing", g.Name, a.Name, a.Source, a.Do, free[0][n], free[1][n], a.Proof, a.Want)
	})
	for _, user := range []string{"root", "user"} {
		t.Run(user, func(t *testing.T) {
			b := newBox(t)
			b.target()
			if user == "user" {
				b.asUser()
			}
			before := b.contents()
			main := b.up()
			exec := b.exec("--cwd", "/root")
			main.tryAll(exec)
			exec.tryAll(main)
			if after := b.contents(); after != before {
				for line := range strings.Lines(after) {
					if !strings.Contains(before, line) {
						t.Errorf("the image was changed: %s", line)
					}
				}
				t.Errorf("the image was changed: it held %d bytes of names, and holds %d", len(before), len(after))
			}
		})
	}
}

// since is how the source of an attempt says that an older kernel has nothing to
// attack.
var since = regexp.MustCompile(`\bLinux (\d+)\.(\d+)$`)

// newerKernel tells whether a source names a newer kernel than this.
func newerKernel(t *testing.T, source string) bool {
	t.Helper()
	named := since.FindStringSubmatch(source)
	if named == nil {
		return false
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var this, other [2]int
	for i := range this {
		if _, err := fmt.Sscan(named[1+i], &other[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &this[0], &this[1]); err != nil {
		t.Fatal(err)
	}
	return slices.Compare(this[:], other[:]) < 0
}

// privileged are Docker's capabilities and those that reach the kernel.
var privileged = append([]string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_MODULE", "CAP_DAC_READ_SEARCH",
	"CAP_SYS_TIME", "CAP_SYS_BOOT", "CAP_SYS_RAWIO", "CAP_SYSLOG", "CAP_SYS_PACCT", "CAP_AUDIT_CONTROL"}, dockerCapabilities...)

// target makes the image that the attempts are about.
func (b *box) target() {
	b.t.Helper()
	unix.Umask(0)
	defer unix.Umask(0o022)
	for name, text := range escape.Files() {
		file := filepath.Join(b.rootfs(), name)
		if strings.HasSuffix(name, "/") {
			b.must(os.MkdirAll(file, 0o777))
			continue
		}
		b.must(os.MkdirAll(filepath.Dir(file), 0o777))
		b.must(os.WriteFile(file, []byte(text), 0o777))
		b.must(os.Chmod(file, 0o777)) // whatever it was
	}
	busybox, err := os.ReadFile(filepath.Join(b.rootfs(), "bin/busybox"))
	b.must(err)
	probe, err := os.ReadFile(filepath.Join(b.rootfs(), "bin/probe"))
	b.must(err)
	for _, name := range escape.Probes {
		b.must(os.WriteFile(filepath.Join(b.rootfs(), name), probe, 0o777))
	}
	for _, name := range escape.Programs {
		file := filepath.Join(b.rootfs(), name)
		if st, err := os.Lstat(file); err == nil && (st.Mode()&os.ModeSymlink != 0 || name == "bin/busybox") {
			continue
		}
		b.must(os.MkdirAll(filepath.Dir(file), 0o777))
		b.must(os.WriteFile(file, busybox, 0o777))
	}
	b.must(os.Chmod(filepath.Join(b.rootfs(), escape.Setuid), 0o777|os.ModeSetuid))
	b.spec.Process.NoNewPrivileges = false
	for _, dir := range []string{"", "root", "home", "home/user", "mnt", "usr/share", "usr/share/t", "opt/app", "etc", "bin", "var/log"} {
		b.must(os.Chmod(filepath.Join(b.rootfs(), dir), 0o777))
	}
}

// contents are the names of the image's files and what they hold, but for
// where a sandbox may write.
func (b *box) contents() string {
	b.t.Helper()
	var all strings.Builder
	b.must(filepath.WalkDir(b.rootfs(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, b.rootfs())
		switch {
		case name == "/tmp", name == "/sandbox", name == "/dev", name == "/proc", name == "/sys", name == "/bin":
			return filepath.SkipDir
		case d.Type().IsRegular():
			text, err := os.ReadFile(path)
			fmt.Fprintf(&all, "%s %.20q\n", name, text)
			return err
		}
		fmt.Fprintln(&all, name)
		return nil
	}))
	return all.String()
}

// try is the answer to one attempt.
func (k *talk) try(do string, n int, other *talk) (answer string) {
	k.t.Helper()
	for _, verb := range escape.Verbs(do, n, k.name, other.pid()) {
		if answer = k.ask(verb); !strings.HasPrefix(answer, "ok") {
			break
		}
	}
	return answer
}

// pid is the probe's in its container.
func (k *talk) pid() string {
	if k.self == "" {
		k.self = strings.TrimPrefix(k.ask("pid"), "ok ")
	}
	return k.self
}

// tryAll makes all attempts, and what must work beside them.
func (k *talk) tryAll(other *talk) {
	k.t.Helper()
	for _, g := range escape.Groups {
		for _, control := range g.Controls {
			if got := k.try(control, 0, other); !strings.HasPrefix(got, "ok") {
				k.t.Errorf("%s: %s: beside the attempts %s: %s", k.name, g.Name, control, got)
			}
		}
	}
	escape.Each(func(n int, g escape.Group, a escape.Attempt) {
		if got := k.try(a.Do, n, other); !escape.Fits(got, a.Want) {
			k.t.Errorf("%s: %s: %s (%s): %s: %s, want %s", k.name, g.Name, a.Name, a.Source, a.Do, got, a.Want)
		}
		if beside, ok := strings.CutPrefix(a.Proof, "+ "); ok {
			if got := k.try(beside, n, other); !strings.HasPrefix(got, "ok") {
				k.t.Errorf("%s: %s: %s: beside it %s: %s", k.name, g.Name, a.Name, beside, got)
			}
		}
	})
}

// A link of the image at a place that the policy grants: what it leads to was
// not granted (the trap of research: /work -> /secret).
func TestEscapeByTheImagesLinks(t *testing.T) {
	b := newBox(t)
	b.policy("filesystem: {read_write: [/work, /everything/deeper, /sandbox], image: strict}\negress: {rules: []}\n")
	b.spec.Process.Cwd = "/sandbox"
	got := b.ask("read /root/secret", "read /work/secret", "create /work/new", "read /usr/share/text", "read /everything/usr/share/text", "create /sandbox/new")
	want := []string{"EACCES", "EACCES", "EACCES", "ok public", "ok public", "ok"}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("answer %d: %s, want %s", i, got[i], want[i])
		}
	}
}

// A hostile working directory: a link of the image, a descriptor, a system
// directory.
func TestEscapeByTheWorkingDirectory(t *testing.T) {
	for _, cwd := range []string{"/work", "/everything", "/root", "/etc", "/proc/self/fd/7", "/proc/self/fd/8"} {
		t.Run(strings.ReplaceAll(cwd, "/", "_"), func(t *testing.T) {
			b := newBox(t)
			b.spec.Process.Cwd = cwd
			b.spec.Process.Args = []string{"/bin/probe", "serve"}
			b.saveSpec()
			got := b.nemoclaw(strings.NewReader("read /root/secret\ncreate /etc/new\nread /home/user/secret\nread ../../../etc/shadow\n"),
				"run", "--bundle", b.path("bundle"), b.id)
			if got.code != 0 && got.stdout == "" {
				return // refused is as good
			}
			answers := strings.Split(got.stdout, "\n")
			for i, a := range answers[:4] {
				if strings.HasPrefix(a, "ok") {
					t.Errorf("answer %d of %s", i, got)
				}
			}
		})
	}
}

// What the policy allows answers otherwise: what denied it before was the
// second filter, not the kernel. The rest of it stays.
func TestEscapePositiveControlOfSeccomp(t *testing.T) {
	b := newBox(t)
	b.policy("seccomp: {allow: [ptrace, ioctl]}\negress: {rules: []}\n")
	got := b.ask("sys 101 0x4206 0 0 0", "ioctl 0 0x5412", "sys 425 8 buf")
	for i, want := range []string{"ESRCH", "ENOTTY", "EPERM"} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("answer %d: %s, want %s", i, got[i], want)
		}
	}
}

// The state of a sandbox is root's alone: "without root: read nothing".
func TestStateIsClosedToOthers(t *testing.T) {
	b := newBox(t)
	b.up()
	for _, path := range []string{b.stateDir(), b.auditFile(), filepath.Join(b.gatewayDir(), "control.sock"), filepath.Join(b.gatewayDir(), "runtime.sock"), filepath.Join(b.stateDir(), "sandbox.json")} {
		var st unix.Stat_t
		b.must(unix.Lstat(path, &st))
		if st.Mode&0o077 != 0 || st.Uid != 0 {
			t.Errorf("%s: mode %o, owner %d", path, st.Mode&0o7777, st.Uid)
		}
	}
	// Nor does the gateway inherit anything of its creator's.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/[012]", b.monitor()))
	b.must(err)
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); to != "/dev/null" {
			t.Errorf("the monitor's %s is %s", filepath.Base(fd), to)
		}
	}
}
