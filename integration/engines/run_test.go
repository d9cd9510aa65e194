package engines

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/console"
)

// What docker run shows a person is what it shows with runc.
func TestRunEndsAsWithRunc(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"busybox", "true"}, 0},
		{[]string{"busybox", "sh", "-c", "echo out; echo err >&2; exit 7"}, 7},
		{[]string{"busybox", "no-such-program"}, 127},
		{[]string{"busybox", "/bin/no-such-program"}, 127},
		{[]string{"busybox", "/etc/passwd"}, 126},
		{[]string{"--workdir=/etc", "busybox", "./passwd"}, 126},
		{[]string{"debian", "python3", "-c", "print('out'); raise SystemExit(3)"}, 3},
		{[]string{"--init", "busybox", "sh", "-c", "exit 4"}, 4},
		{[]string{"--entrypoint=/bin/echo", "busybox", "out"}, 0},
		{[]string{"--hostname=box", "busybox", "hostname"}, 0},
		{[]string{"--env=A=b", "busybox", "sh", "-c", "echo $A"}, 0},
		{[]string{"--memory=64m", "busybox", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}, 0},
		{[]string{"--pids-limit=1", "busybox", "true"}, 0},
		{[]string{"--tmpfs=/scratch", "busybox", "touch", "/scratch/file"}, 0},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			t.Parallel()
			want := docker(t, append([]string{"run", "--rm"}, c.args...)...)
			got := docker(t, append([]string{"run", "--rm", "--runtime=nemoclaw"}, c.args...)...)
			if want.code != c.code {
				t.Fatalf("runc: %v", want)
			}
			if got.code != c.code || got.out != want.out || complaint(got.err) != complaint(want.err) {
				t.Errorf("nemoclaw: %v\nrunc: %v", got, want)
			}
		})
	}
}

// complaint is what docker complains of, without the words of a runtime's
// version before it and the client's own log behind it.
func complaint(text string) string {
	if _, cause, ok := strings.Cut(text, "exec: "); ok {
		cause, _, _ = strings.Cut(cause, "\n")
		return cause
	}
	return text
}

func TestUserAndReadOnlyRoot(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"a user of its own writes to its home", []string{"--user=1000", "busybox", "sh", "-c", "id -u; echo $HOME; touch /sandbox/file /tmp/file && echo written"}, "1000\n/sandbox\nwritten"},
		{"a read-only root leaves the home writable", []string{"--read-only", "busybox", "sh", "-c", "touch /sandbox/file && echo written; touch /etc/file || echo refused"}, "written\nrefused"},
		{"both", []string{"--read-only", "--user=1000", "busybox", "sh", "-c", "touch /sandbox/file && echo written"}, "written"},
		{"the image's secrets are not readable", []string{"busybox", "sh", "-c", "cat /root/secret || echo refused"}, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := must(t, append([]string{"run", "--rm", "--runtime=nemoclaw"}, c.args...)...); got != c.says {
				t.Errorf("said %q, not %q", got, c.says)
			}
		})
	}
}

// A person at a terminal has a shell with job control.
func TestTerminal(t *testing.T) {
	s := typed(t, "tty; echo $((6*7)) answers; exit 5\n", "run", "--rm", "-it", "--runtime=nemoclaw", "busybox", "sh")
	if s.code != 5 || !strings.Contains(s.out, "42 answers") || !strings.Contains(s.out, "/dev/pts/") || strings.Contains(s.out, "job control turned off") {
		t.Error(s)
	}
}

// typed runs a docker command at a terminal, types text and reads until the
// command ends.
func typed(t *testing.T, text string, args ...string) said {
	t.Helper()
	docker(t, "version")
	terminal, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	line, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := dockerd.client(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = line, line, line
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line.Close()
	if _, err := io.WriteString(terminal, text); err != nil {
		t.Fatal(err)
	}
	shown, _ := io.ReadAll(terminal) // EIO once nobody has the other end
	_ = cmd.Wait()
	return said{out: string(shown), code: cmd.ProcessState.ExitCode()}
}

// started runs a sandbox in the background whose program says "ready", and
// returns its name once it did. It is removed with the test.
func started(t *testing.T, name string, args ...string) string {
	t.Helper()
	removed(t, name)
	must(t, append([]string{"run", "-d", "--runtime=nemoclaw", "--name=" + name}, args...)...)
	awaitLine(t, dockerd.client("logs", "-f", name), "ready")
	return name
}

// removed sees to it that name is removed with the test.
func removed(t *testing.T, name string) {
	t.Helper()
	docker(t, "version")
	t.Cleanup(func() { docker(t, "rm", "-f", "-v", name) })
}

// awaitLine runs cmd until it prints a line that contains text.
func awaitLine(t *testing.T, cmd *exec.Cmd, text string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var seen strings.Builder
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.Contains(s.Text(), text) {
			return
		}
		seen.WriteString(s.Text() + "\n")
	}
	t.Fatalf("%s ended before it said %q:\n%s", cmd, text, &seen)
}

// Programs for started: they end by SIGTERM, as a well-kept one does.
const (
	idle  = `trap 'echo asked to end; exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done`
	serve = `httpd -h /var/www && ` + idle
)
