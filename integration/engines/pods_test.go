package engines

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A pod as Kubernetes makes one: a network plugin configures a namespace, the
// pause container is started in it, then the others; the plugin is told when
// all have ended. (containerd's client in the part of the kubelet.)
func TestPod(t *testing.T) {
	docker(t, "version")
	plugin := newPlugin(t)
	at := plugin.call(t, "ADD")
	server := greeter(t, "172.30.9.1:0")
	_, port, _ := net.SplitHostPort(server)
	write(t, "/etc/nemoclaw/policy.yaml", policy+"    - {cidr: 172.30.9.1/32, port: "+port+", allow_private: [172.30.9.0/24]}\n")
	t.Cleanup(func() { write(t, "/etc/nemoclaw/policy.yaml", policy) })

	pause := runIn(t, "engines-pause", plugin.netns, "sleep", "1000")
	shared := fmt.Sprintf("/proc/%d/ns/net", pause)
	runIn(t, "engines-app", shared, "sh", "-c", "httpd -h /var/www && sleep 1000")
	runIn(t, "engines-sidecar", shared, "sleep", "1000")

	for _, box := range []string{"engines-pause", "engines-app", "engines-sidecar"} {
		for _, c := range []struct {
			url, says string
			code      int
		}{
			{"http://" + server + "/", theirs, 0},
			{"http://" + unlisted + "/hello", "403 Forbidden", 1},
		} {
			if s := execIn(t, box, "wget", "-qO-", c.url); s.code != c.code || !strings.Contains(s.out+s.err, c.says) {
				t.Errorf("%s: %s: %v", box, c.url, s)
			}
		}
		if log := nemoclawctl(t, "log", "--json", box); !strings.Contains(log, `"container":{"uid":"`+box+`"}`) {
			t.Errorf("the log does not tell of %s:\n%s", box, log)
		}
	}
	if s := execIn(t, "engines-sidecar", "wget", "-qO-", "http://127.0.0.1/"); s.out != "a page\n" {
		t.Errorf("a neighbour in the pod: %v", s)
	}
	probe := func() (string, error) {
		return get(func(a netip.AddrPort) (net.Conn, error) { return net.Dial("tcp", a.String()) }, at+":80")
	}
	if page, err := probe(); !strings.HasSuffix(page, "a page\n") {
		t.Errorf("the kubelet's probe: %q, %v", page, err)
	}
	// One container is restarted: it joins again.
	removeFrom(t, "engines-app")
	runIn(t, "engines-app", shared, "sh", "-c", "httpd -h /var/www && sleep 1000")
	if s := execIn(t, "engines-app", "sh", "-c", "until wget -qO /dev/null http://127.0.0.1/; do sleep 0.1; done"); s.code != 0 { // it listens
		t.Errorf("its own page: %v", s)
	}
	if page, err := probe(); !strings.HasSuffix(page, "a page\n") {
		t.Errorf("the probe after a restart: %q, %v", page, err)
	}
	// The pod ends; what the plugin put in is there for it to remove.
	for _, box := range []string{"engines-app", "engines-sidecar", "engines-pause"} {
		removeFrom(t, box)
	}
	plugin.call(t, "DEL")
	if links, err := os.ReadDir("/sys/class/net/cni0/brif"); err == nil && len(links) > 0 {
		t.Errorf("the plugin's bridge still has %s", links[0].Name())
	}
}

// runIn starts a container in the network namespace at path and returns the pid
// of its first process.
func runIn(t *testing.T, id, path string, program ...string) int {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := run("tar", "-C", root, "-xf", cache(os.Getenv(cacheEnv)).busybox()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeFrom(t, id) })
	if s := ctr(t, append([]string{"run", "-d", "--runtime=io.containerd.nemoclaw.v1", "--with-ns=network:" + path, "--rootfs", root, id}, program...)...); s.code != 0 {
		t.Fatal(s)
	}
	for line := range strings.Lines(ctr(t, "task", "ls").out) {
		var task, status string
		var pid int
		if fmt.Sscan(line, &task, &pid, &status); task == id && pid > 0 {
			return pid
		}
	}
	t.Fatalf("%s has no process", id)
	return 0
}

func execIn(t *testing.T, id string, program ...string) said {
	t.Helper()
	return ctr(t, append([]string{"task", "exec", "--exec-id=e", id}, program...)...)
}

func removeFrom(t *testing.T, id string) {
	t.Helper()
	ctr(t, "task", "rm", "-f", id)
	ctr(t, "container", "rm", id)
}

// plugin is a CNI bridge and the namespace that it serves.
type plugin struct{ dir, netns string }

const bridgePlugin = `{"cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": true,
	"ipam": {"type": "host-local", "subnet": "172.30.9.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}`

func newPlugin(t *testing.T) *plugin {
	t.Helper()
	p := &plugin{dir: filepath.Join(cache(os.Getenv(cacheEnv)).cni(), "usr/lib/cni"), netns: "/run/netns/engines-pod"}
	if err := os.WriteFile(p.netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A short-lived process is the way to a namespace without a thread in it.
	sleeper := exec.Command("cat")
	stdin, err := sleeper.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	sleeper.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	err = unix.Mount(fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid), p.netns, "", unix.MS_BIND, "")
	stdin.Close()
	sleeper.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(p.netns, unix.MNT_DETACH)
		os.Remove(p.netns)
		if bridge, err := netlink.LinkByName("cni0"); err == nil {
			_ = netlink.LinkDel(bridge)
		}
	})
	return p
}

// call calls the plugin as its specification has it (CNI 0.4.0) and returns the
// address that it gave.
func (p *plugin) call(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(p.dir, "bridge"))
	cmd.Env = append(dockerd.env, "CNI_COMMAND="+command, "CNI_CONTAINERID=engines-pod", "CNI_NETNS="+p.netns, "CNI_IFNAME=eth0", "CNI_PATH="+p.dir)
	cmd.Stdin = strings.NewReader(bridgePlugin)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the network plugin's %s: %v: %s", command, err, out)
	}
	if command != "ADD" {
		return ""
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) != 1 {
		t.Fatalf("the network plugin says %s: %v", out, err)
	}
	return result.IPs[0].Address.Addr().String()
}
