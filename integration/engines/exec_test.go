package engines

import (
	"strings"
	"testing"
)

// Docker's health checks are execs: they work, and they are under the policy.
func TestHealth(t *testing.T) {
	removed(t, "health")
	must(t, "run", "-d", "--runtime=nemoclaw", "--name=health", "--health-interval=1s", "--health-timeout=20s", "--health-retries=1",
		"--health-cmd=cat /root/secret || { echo refused; grep Seccomp_filters /proc/self/status; }", "busybox", "sh", "-c", idle)
	awaitLine(t, dockerd.client("events", "--since=0", "--filter=container=health", "--filter=event=health_status"), "health_status: healthy")
	said := must(t, "inspect", "--format={{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{end}}", "health")
	if !strings.Contains(said, "0 ") || !strings.Contains(said, "refused\nSeccomp_filters:\t2") {
		t.Errorf("it said %q", said)
	}
}

// Whoever comes in later is under the same policy.
func TestExec(t *testing.T) {
	box := started(t, "exec", "busybox", "sh", "-c", idle)
	for _, c := range []struct {
		name string
		args []string
		says string
		code int
	}{
		{"it runs", []string{box, "id", "-u"}, "0\n", 0},
		{"its exit code is the program's", []string{box, "sh", "-c", "exit 9"}, "", 9},
		{"a program that is not there", []string{box, "no-such-program"}, "executable file not found", 126},
		{"layer 1", []string{box, "cat", "/root/secret"}, "Permission denied", 1},
		{"layer 1, privileged", []string{"--privileged", box, "cat", "/root/secret"}, "Permission denied", 1},
		{"layer 1, working there", []string{"--workdir=/root", box, "cat", "secret"}, "Permission denied", 1},
		{"its name servers are the engine's choice", []string{box, "sh", "-c", "echo nameserver 203.0.113.66 > /etc/resolv.conf"}, "Permission denied", 1},
		{"layer 2", []string{box, "grep", "-E", "^(NoNewPrivs|Seccomp_filters)", "/proc/self/status"}, "NoNewPrivs:\t1\nSeccomp_filters:\t2\n", 0},
		{"layer 2, privileged", []string{"--privileged", box, "grep", "-E", "^(NoNewPrivs|Seccomp_filters)", "/proc/self/status"}, "NoNewPrivs:\t1\nSeccomp_filters:\t2\n", 0},
		{"capabilities, privileged", []string{"--privileged", box, "grep", "CapEff", "/proc/self/status"}, "CapEff:\t00000000a00005fb\n", 0},
		{"layer 4", []string{box, "wget", "-qO-", "http://" + unlisted + "/hello"}, "403 Forbidden", 1},
		{"what is listed", []string{box, "wget", "-qO-", "http://" + plain + "/hello"}, theirs, 0},
		{"another user", []string{"--user=1000:1000", box, "id", "-u"}, "1000\n", 0},
		{"its environment", []string{"--env=A=b", box, "sh", "-c", "echo $A"}, "b\n", 0},
		{"a terminal", []string{"-t", box, "tty"}, "/dev/pts/", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := docker(t, append([]string{"exec"}, c.args...)...)
			if got.code != c.code || !strings.Contains(got.out+got.err, c.says) {
				t.Errorf("%v\nwant exit code %d and %q", got, c.code, c.says)
			}
		})
	}

	t.Run("detached, with the host's /dev/null", func(t *testing.T) {
		must(t, "exec", box, "mkfifo", "/tmp/said")
		must(t, "exec", "-d", box, "sh", "-c", "{ cat < /dev/stdin; cat /root/secret; grep NoNewPrivs /proc/self/status; } > /tmp/said 2>&1")
		got := must(t, "exec", box, "cat", "/tmp/said")
		if !strings.Contains(got, "NoNewPrivs:\t1") || strings.Count(got, "Permission denied") != 1 {
			t.Errorf("said %q", got)
		}
	})

	t.Run("at a terminal", func(t *testing.T) {
		s := typed(t, "echo $((6*7)) answers; exit 6\n", "exec", "-it", box, "sh")
		if s.code != 6 || !strings.Contains(s.out, "42 answers") {
			t.Error(s)
		}
	})
}
