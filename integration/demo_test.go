package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// demoLines are what the demo prints: what was tried, and who answered.
var demoLines = []string{
	"work in /sandbox with a shell             Landlock",
	"read /root/.ssh/id_ed25519                Landlock",
	"write /usr/bin/backdoor                   Landlock",
	"attach a debugger to its own child        seccomp",
	"mount a tmpfs on /sandbox                 seccomp",
	"open a packet socket                      seccomp",
	"list the network's interfaces             network",
	"talk to 10.77.0.1 on the LAN              egress",
	"GET https://allowed.example/              egress",
	"GET https://unlisted.example/             egress", // refused
	"look the refusal up in the audit log      egress",
	"GET http://unlisted.example/              egress",
	"what of that left the host                outside",
	"see what waits for a decision             outside",
	"GET https://unlisted.example/             egress", // approved
	"GET https://saved.example/                egress", // refused
	"GET https://saved.example/                egress", // its rule was saved
	"keep a connection to saved.example        egress",
	"go on using that connection               egress", // its rule was removed
	"GET https://saved.example/                egress", // refused again
	"check the audit log's chain               outside",
	"sweep up                                  outside",
}

// The demo shows every line as it should be, exits with 0 and leaves nothing.
func TestDemo(t *testing.T) {
	d := newDemo(t)
	out, errors, code := d.run()
	if code != 0 || errors != "" {
		t.Errorf("exit status %d\n%s%s", code, out, errors)
	}
	if got := marked(out, "ok"); !slices.Equal(got, demoLines) {
		t.Errorf("good lines\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(demoLines, "\n"))
	}
	if bad := marked(out, "NO"); len(bad) > 0 {
		t.Errorf("bad lines\n%s", strings.Join(bad, "\n"))
	}
	d.leavesNothing()
}

// A layer that does not hold is seen: here a policy that allows ptrace.
func TestDemoSeesAHole(t *testing.T) {
	d := newDemo(t)
	real := program(t, "nemoclaw")
	d.replace("nemoclaw", fmt.Sprintf(`#!/bin/sh
case "$*" in *" run "*) echo 'seccomp: {allow: [ptrace]}' >>"${NEMOCLAW_CONFIG%%/*}/policy.yaml" ;; esac
exec %s "$@"
`, real))
	out, errors, code := d.run()
	if code != 1 || errors != "" {
		t.Errorf("exit status %d, want 1\n%s%s", code, out, errors)
	}
	hole := []string{"attach a debugger to its own child        -"}
	if got := marked(out, "NO"); !slices.Equal(got, hole) {
		t.Errorf("bad lines %q, want %q", got, hole)
	}
	if got, want := len(marked(out, "ok")), len(demoLines)-1; got != want {
		t.Errorf("%d good lines, want %d\n%s", got, want, out)
	}
	d.leavesNothing()
}

// Interrupted in the middle, it leaves nothing either.
func TestDemoInterrupted(t *testing.T) {
	d := newDemo(t)
	cmd := d.command()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), "GET https://allowed.example/") {
			cmd.Process.Signal(unix.SIGINT)
		}
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Errorf("exit status %d, want 2", code)
	}
	d.leavesNothing()
}

// Where nemoclaw could not work the demo says what is missing, and does nothing.
func TestDemoOnAMachineThatCannot(t *testing.T) {
	for _, test := range []struct {
		name, says string
		lacks      func(*demo)
	}{
		{"the gateway is not installed", "install nemoclaw-gateway beside nemoclaw", func(d *demo) {
			b, err := os.ReadFile(program(t, "nemoclaw"))
			if err != nil {
				t.Fatal(err)
			}
			d.replace("nemoclaw", string(b)) // a link would find the gateway beside its target
			if err := os.Remove(filepath.Join(d.bin, "nemoclaw-gateway")); err != nil {
				t.Fatal(err)
			}
		}},
		{"the kernel has no Landlock", "landlock: no, ", func(d *demo) { d.deny = noLandlock }},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDemo(t)
			test.lacks(d)
			out, errors, code := d.run()
			if code != 2 || out != "" || !strings.Contains(errors, "nothing was changed") || !strings.Contains(errors, test.says) {
				t.Errorf("exit status %d\n%s%s", code, out, errors)
			}
			d.leavesNothing()
		})
	}
}

// noLandlock has landlock_create_ruleset answered with ENOSYS, as kernels do
// that were built without it.
const noLandlock = "38 444"

// without makes cmd run on a kernel that lacks what deny says, see denyEnv.
func without(cmd *exec.Cmd, deny string) *exec.Cmd {
	if deny != "" {
		cmd.Env = append(cmd.Env, denyEnv+"="+deny)
		cmd.Path, cmd.Args = "/proc/self/exe", append([]string{"deny", cmd.Path}, cmd.Args[1:]...)
	}
	return cmd
}

// What is missing is named, and where it cannot be installed nothing is done;
// where nothing is missing there is nothing to say.
func TestDeps(t *testing.T) {
	needRoot(t)
	tools := []string{"go", "cc", "as", "ld", "ldd", "perl", "mktemp", "rm", "id", "uname", "grep", "sed", "cat", "busybox"}
	for _, test := range []struct {
		name  string
		tools []string
		deny  string
		out   string
		fails bool
	}{
		{"everything there", append(tools, "pkg-config"), "", "", false},
		{"no pkg-config, and no apt-get", tools, "", "missing: pkg-config libseccomp-dev\n" +
			"deps: cannot install them: there is no apt-get\nhint: install what this system calls them\n", true},
		{"no pkg-config, and no Landlock", tools, noLandlock, "missing: pkg-config libseccomp-dev\n" +
			"deps: cannot run nemoclaw here: it needs Landlock ABI 3 (Linux 6.2), and this kernel has none\n" +
			"hint: boot a newer kernel, or have lsm= on its command line begin with landlock; nothing was changed\n", true},
		{"no Go", tools[1:], "", "deps: cannot build: Go 1.26 or later is missing\nhint: https://go.dev/dl\n", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "../examples/demo/deps.sh")
			cmd.Env = append(os.Environ(), "PATH="+pathOf(t, test.tools))
			out, err := without(cmd, test.deny).CombinedOutput()
			if string(out) != test.out || (err != nil) != test.fails {
				t.Errorf("%v, it said %q, want %q", err, out, test.out)
			}
		})
	}
}

// pathOf makes a directory that has these programs and no others.
func pathOf(t *testing.T, names []string) string {
	dir := t.TempDir()
	for _, name := range names {
		file, err := exec.LookPath(name)
		if err != nil {
			lacking(t, "there is no %s", name)
		}
		if err := os.Symlink(file, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// demo is the demo in a directory of its own, beside the programs under test.
type demo struct {
	t        *testing.T
	bin, tmp string
	deny     string // what the kernel lacks, see denyEnv
}

func newDemo(t *testing.T) *demo {
	t.Helper()
	needRoot(t)
	d := &demo{t: t, bin: t.TempDir(), tmp: t.TempDir()}
	for _, name := range []string{"nemoclaw", "nemoclaw-gateway", "nemoclawctl"} {
		if err := os.Symlink(program(t, name), filepath.Join(d.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, pkg := range map[string]string{"demo": "../examples/demo", "demo-agent": "../examples/demo/agent"} {
		build := exec.Command("go", "build", "-o", filepath.Join(d.bin, name), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("cannot build %s: %v\n%s", name, err, out)
		}
	}
	return d
}

// replace puts another program in the place of one.
func (d *demo) replace(name, text string) {
	d.t.Helper()
	file := filepath.Join(d.bin, name)
	if err := os.Remove(file); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		d.t.Fatal(err)
	}
}

func (d *demo) command() *exec.Cmd {
	cmd := exec.Command(filepath.Join(d.bin, "demo"))
	cmd.Env = append(os.Environ(), "TMPDIR="+d.tmp)
	return without(cmd, d.deny)
}

func (d *demo) run() (stdout, stderr string, code int) {
	d.t.Helper()
	var out, errors bytes.Buffer
	cmd := d.command()
	cmd.Stdout, cmd.Stderr = &out, &errors
	cmd.Run()
	return out.String(), errors.String(), cmd.ProcessState.ExitCode()
}

// marked returns what was tried, and who answered, on the lines with a mark.
func marked(out, mark string) (lines []string) {
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, mark+" "); ok {
			layer, _, _ := strings.Cut(rest[41:], " ")
			lines = append(lines, rest[:41]+" "+layer)
		}
	}
	return lines
}

// leavesNothing looks for what bears the name of the demo's directory: files,
// mounts, processes. A network namespace needs one of those to live on.
func (d *demo) leavesNothing() {
	d.t.Helper()
	files, err := os.ReadDir(d.tmp)
	if err != nil || len(files) > 0 {
		d.t.Errorf("files are left: %v %v", files, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(d.tmp)) {
		d.t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		if b, _ := os.ReadFile(file); bytes.Contains(b, []byte(d.tmp)) || bytes.Contains(b, []byte(d.bin)) {
			d.t.Errorf("a process is left: %s %q", file, b)
		}
	}
}
