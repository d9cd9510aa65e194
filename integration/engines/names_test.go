package engines

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dockersResolver answers inside every container of a user-defined network.
var dockersResolver = netip.MustParseAddr("127.0.0.11")

// A sandbox reaches other containers of its network by the names that Docker
// gives them, where a rule lists the name and the network. Docker's resolver,
// which would tell the world whatever it is asked, hears of listed names only,
// and from the gateway only.
func TestNamesOfContainers(t *testing.T) {
	must(t, "network", "create", "--subnet=172.30.8.0/24", "shop")
	t.Cleanup(func() { docker(t, "network", "rm", "shop") })
	write(t, "/etc/nemoclaw/policies/live.yaml", policy+`    - {host: db, port: 5432, allow_private: [172.30.8.0/24]}
    - {host: store, port: 5432, allow_private: [172.30.8.0/24]}
    - {host: store.shop.example, port: 5432, allow_private: [172.30.8.0/24]}
    - {host: cache, port: 5432, allow_private: [10.0.0.0/8]}
    - {host: nobody, port: 5432, allow_private: [172.30.8.0/24]}
`)
	const server = `httpd -p 5432 -h /var/www && ` + idle
	started(t, "db", "--network=shop", "--network-alias=store", "--network-alias=store.shop.example", "--network-alias=cache", "--network-alias=secret", "busybox", "sh", "-c", server)
	box := started(t, "client", "--runtime=nemoclaw-live", "--network=shop", "busybox", "sh", "-c", idle)
	page := func(host string) said {
		return docker(t, "exec", box, "timeout", "30", "wget", "-qO-", "http://"+host+":5432/")
	}
	asked := capture(t, box)

	for _, host := range []string{"db", "store", "store.shop.example"} {
		if s := page(host); s.out != "a page\n" {
			t.Errorf("%s: %v", host, s)
		}
	}
	if asked() == 0 {
		t.Fatal("no packet to Docker's resolver was seen, so that the capture shows nothing")
	}
	t.Run("what is not listed is no question", func(t *testing.T) {
		for _, host := range []string{"secret", "secret.evil.example"} {
			if s := page(host); s.code == 0 {
				t.Errorf("%s: %v", host, s)
			}
			docker(t, "exec", box, "nslookup", host, dockersResolver.String())
		}
		if s := docker(t, "exec", box, "wget", "-qO-", "http://db:81/"); s.code == 0 {
			t.Errorf("another port: %v", s)
		}
		if n := asked(); n != 0 {
			t.Errorf("%d packets went to Docker's resolver", n)
		}
	})
	t.Run("at an address that its rule does not name", func(t *testing.T) {
		if s := page("cache"); s.code == 0 {
			t.Error(s)
		}
	})
	t.Run("a container that is not there", func(t *testing.T) {
		if s := page("nobody"); s.code == 0 {
			t.Error(s)
		}
	})
	t.Run("a program asks the gateway, whomever it asks", func(t *testing.T) {
		if s := docker(t, "exec", box, "nslookup", "-type=a", "db", dockersResolver.String()); !strings.Contains(s.out, "198.19.") || strings.Contains(s.out, "172.30.8.") {
			t.Errorf("Docker's resolver: %v", s)
		}
	})
	t.Run("after the worker was restarted", func(t *testing.T) {
		kill(t, child(t, monitor(t, box)))
		if s := page("store"); s.out != "a page\n" {
			t.Error(s)
		}
	})
	t.Run("after a repair", func(t *testing.T) {
		kill(t, monitor(t, box))
		nemoclawctl(t, "repair", id(t, box))
		if s := page("db"); s.out != "a page\n" {
			t.Error(s)
		}
	})
	t.Run("network.dns overrides Docker's resolver", func(t *testing.T) {
		write(t, "/etc/nemoclaw/policies/live.yaml", policy+"    - {host: db, port: 5432, allow_private: [172.30.8.0/24]}\nnetwork: {dns: [203.0.113.1]}\n")
		s := docker(t, "run", "--rm", "--runtime=nemoclaw-live", "--network=shop", "busybox", "timeout", "30", "wget", "-qO-", "http://db:5432/")
		if s.code == 0 {
			t.Error(s)
		}
	})
}

// capture watches the loopback of a container's namespace. What it returns
// counts the packets that went to Docker's resolver since it was called last.
func capture(t *testing.T, box string) (asked func() int) {
	t.Helper()
	pid := must(t, "inspect", "--format={{.State.Pid}}", box)
	fd := -1
	err := inNetns("/proc/"+pid+"/ns/net", func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() (n int) {
		for packet := make([]byte, 64); ; {
			size, _, err := unix.Recvfrom(fd, packet, 0)
			if err != nil {
				return n
			}
			if size >= 20 && netip.AddrFrom4([4]byte(packet[16:20])) == dockersResolver {
				n++
			}
		}
	}
}

// inNetns runs f on a thread that enters a network namespace and ends with f;
// the first thread never ends, so that it is passed over.
func inNetns(path string, f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- inNetns(path, f)
			goruntime.UnlockOSThread()
			return
		}
		ns, err := os.Open(path)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// monitor is the pid of a sandbox's gateway.
func monitor(t *testing.T, box string) int {
	t.Helper()
	found, err := filepath.Glob("/run/nemoclaw/" + id(t, box) + ".*/gateway/monitor.json")
	if err != nil || len(found) != 1 {
		t.Fatalf("gateways: %v %v", found, err)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ PID int }
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m.PID
}

// child is the only child of a process.
func child(t *testing.T, pid int) int {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var found []string
	for _, f := range files {
		b, _ := os.ReadFile(f)
		found = append(found, strings.Fields(string(b))...)
	}
	for _, f := range found {
		if line, _ := os.ReadFile("/proc/" + f + "/cmdline"); strings.Contains(string(line), "worker") {
			n, _ := strconv.Atoi(f)
			return n
		}
	}
	t.Fatalf("process %d has no worker among its children %v", pid, found)
	return 0
}

// kill ends a process and returns once it has ended.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); err != nil {
		t.Fatal(err)
	}
}
