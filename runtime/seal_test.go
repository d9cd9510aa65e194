package runtime

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/landlock"
	"nemoclaw/specs/seccomp"
)

func itoa(n int) string { return strconv.Itoa(n) }

// emptySeal is a seal whose ruleset grants nothing yet.
func emptySeal(t *testing.T, abi int) *seal {
	t.Helper()
	ruleset, err := newRuleset(abi, 0)
	check(t, err)
	s, err := newSeal(abi, ruleset, "nemoclaw-launch")
	check(t, err)
	return s
}

// launch runs the launcher, outside of any container, with what spoil made of
// its descriptors.
func launch(t *testing.T, spoil func(*seal), finish bool, program ...string) (stdout, stderr string, code int) {
	t.Helper()
	abi, err := ProbeLandlock()
	check(t, err)
	if abi < landlock.MinABI {
		t.Skipf("Landlock ABI %d", abi)
	}
	s := emptySeal(t, abi)
	defer s.Close()
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(root)
	_, _, err = s.grant(&containerRoot{fd: root}, []landlock.Rule{{Path: "/", Access: landlock.ReadWrite | landlock.Device}})
	check(t, err)
	denials, err := seccomp.Denials(nil, nil, nil)
	check(t, err)
	filter, err := seccomp.Compile(denials)
	check(t, err)
	first, err := seccomp.CompileDefault(&oci.Spec{})
	check(t, err)
	if finish {
		check(t, s.finish(program[0], "", filters{first, filter}))
	}
	if spoil != nil {
		spoil(s)
	}
	var out, errs strings.Builder
	cmd := exec.Command("/proc/self/fd/3")
	cmd.Args = append([]string{"/proc/self/fd/3"}, program...)
	cmd.ExtraFiles = []*os.File{s.exe, s.plan, s.ruleset, s.canary}
	cmd.Stdout, cmd.Stderr = &out, &errs
	// landlock_restrict_self wants no_new_privs or CAP_SYS_ADMIN; containers
	// have the former.
	err = cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// The launcher becomes the program, with nothing of its own left open, under
// two more layers than before; the argument list is the program's.
func TestLaunch(t *testing.T) {
	out, errs, code := launch(t, nil, true, "/bin/busybox", "sh", "-c", "ls /proc/self/fd | tr '\\n' ' '; grep Seccomp: /proc/self/status; echo $0 $1", "zero", "one")
	if code != 0 || strings.Contains(out, " 4 ") || strings.Contains(out, " 5 ") || strings.Contains(out, " 6 ") || !strings.Contains(out, "Seccomp:\t2") || !strings.Contains(out, "zero one") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
}

// Whatever is wrong, the launcher says which layer and runs nothing.
func TestLaunchRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*seal)
		done  bool
		says  string
	}{
		{"a plan that is not sealed", nil, false, "launcher: the plan is not sealed"},
		{"a plan that is another file", func(s *seal) { s.plan = s.exe }, true, "launcher: the plan"},
		{"a ruleset that is none", func(s *seal) { s.ruleset = s.canary }, true, "landlock: the ruleset cannot be enforced"},
		{"a canary that is granted", func(s *seal) { s.canary, _ = os.Open("/") }, true, "landlock: the ruleset is not enforced"},
		{"a canary that is none", func(s *seal) { s.canary, _ = os.Open("/dev/null") }, true, "landlock: the ruleset cannot be verified"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := launch(t, test.spoil, test.done, "/bin/busybox", "echo", "it ran")
			if code != 255 || out != "" || !strings.Contains(errs, "nemoclaw: cannot run the program: "+test.says) {
				t.Errorf("exit %d, stdout %q, stderr %q; want 255 and %q", code, out, errs, test.says)
			}
		})
	}
}

// Nobody who holds the plan or the launcher can change what will be done.
func TestSealed(t *testing.T) {
	abi, err := ProbeLandlock()
	check(t, err)
	if abi == 0 {
		t.Skip("no Landlock")
	}
	s := emptySeal(t, abi)
	defer s.Close()
	check(t, s.finish("/bin/true", "", filters{second: []unix.SockFilter{{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}}}))
	for name, f := range map[string]*os.File{"plan": s.plan, "launcher": s.exe} {
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Errorf("%s: it can be written", name)
		}
		if err := f.Truncate(0); err == nil {
			t.Errorf("%s: it can be cut off", name)
		}
		if _, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			t.Errorf("%s: it can be mapped for writing", name)
		}
		again, err := os.OpenFile("/proc/self/fd/"+itoa(int(f.Fd())), os.O_RDWR, 0)
		if err == nil {
			if _, err := again.WriteAt([]byte("x"), 0); err == nil {
				t.Errorf("%s: opened again it can be written", name)
			}
			again.Close()
		}
	}
}

// The filter that create stored is the one that exec loads.
func TestFilterRoundTrip(t *testing.T) {
	denials, err := seccomp.Denials(nil, nil, nil)
	check(t, err)
	filter, err := seccomp.Compile(denials)
	check(t, err)
	again, err := decodeFilter(encodeFilter(filter))
	check(t, err)
	if len(again) != len(filter) {
		t.Fatalf("%d instructions, want %d", len(again), len(filter))
	}
	for i := range filter {
		if again[i] != filter[i] {
			t.Fatalf("instruction %d is %v, want %v", i, again[i], filter[i])
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 7)} {
		if _, err := decodeFilter(bad); err == nil {
			t.Errorf("%d bytes were taken for a filter", len(bad))
		}
	}
}
