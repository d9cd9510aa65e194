package vm

import "testing"

// Engines of another age than this machine's, with systemd in charge of their
// cgroups: what they do to a sandbox works, and what runs is one.
func TestEngines(t *testing.T) {
	m := boot(t, "new", newDisk(t))
	m.must(outfit)
	m.must(`
mkdir -p /etc/docker
echo '{"runtimes": {"nemoclaw": {"path": "/usr/local/bin/nemoclaw"}}}' >/etc/docker/daemon.json
sed -i 's/^network: .*//' /etc/nemoclaw/policy.yaml
systemctl start docker
tar -C /image -c . | docker import - box`)
	t.Log(m.must("docker version --format '{{.Server.Version}}'; containerd --version; podman --version; runc --version | head -n 1"))

	const (
		serve   = "sh -c 'mkdir /tmp/www; echo inside >/tmp/www/index.html; httpd -f -p 80 -h /tmp/www'"
		page    = "timeout 60 sh -c 'until curl -sf http://127.0.0.1:$0/; do sleep 1; done'"
		refused = " || echo refused"
		steal   = "cat /root/secret || "
		docker  = "docker run --rm --runtime=nemoclaw "
		host    = "--add-host page.example:192.0.2.1 "
	)
	t.Run("docker", func(t *testing.T) {
		m.steps(t, []step{
			{"systemd has the cgroups", "docker info --format '{{.CgroupDriver}} {{.CgroupVersion}}'", 0, "systemd 2"},
			{"it runs", docker + "box sh -c 'echo ran; exit 7'", 7, "ran"},
			{"layer 1", docker + "box sh -c '" + steal + "echo refused'", 0, "refused"},
			{"layer 2", docker + "box grep Seccomp_filters /proc/self/status", 0, "2"},
			{"layers 3 and 4", docker + "box sh -c 'wget -qO- http://192.0.2.1:81/ || wget -qO- http://192.0.2.1/'", 0, "403 Forbidden"},
			{"a name", docker + host + "box wget -qO- http://page.example/", 0, "a page"},
			{"its memory is bounded", docker + "--memory=64m box cat /sys/fs/cgroup/memory.max", 0, "67108864"},
			{"a terminal", "script -qec '" + docker + "-t box tty' /dev/null", 0, "/dev/pts/0"},
			{"privileged is cut down", docker + "--privileged box sh -c 'mount -t tmpfs none /mnt" + refused + "'", 0, "refused"},
			{"a port", "docker run --detach --name web -p 8080:80 --runtime=nemoclaw box " + serve + " && " + page + " 8080", 0, "inside"},
			{"it is as asked", "nemoclawctl status $(docker inspect --format '{{.Id}}' web)", 0, ""},
			{"exec", "docker exec web sh -c '" + steal + "wget -qO- http://192.0.2.1:81/" + refused + "'", 0, "refused"},
			{"another in its network", docker + "--network container:web box wget -qO- http://127.0.0.1/", 0, "inside"},
			{"restarted", "docker restart web >/dev/null && " + page + " 8080", 0, "inside"},
			{"paused", "docker pause web && docker unpause web", 0, "web"},
			{"a second network", "docker network create second >/dev/null && docker network connect second web && docker exec web wget -qO- http://192.0.2.1/", 0, "a page"},
			{"and away again", "docker network disconnect second web && docker network rm second", 0, "second"},
			{"removed, with all that was there of it", "docker rm -f web; ls /run/nemoclaw/ | grep -v -x -e containers -e lock", 1, ""},
		})
	})
	t.Run("containerd", func(t *testing.T) {
		const ctr = "ctr --address /run/containerd/containerd.sock "
		m.steps(t, []step{
			{"it runs", ctr + "run --rm --runtime io.containerd.nemoclaw.v1 --rootfs /image one sh -c 'id -u; " + steal + "echo refused'", 0, "refused"},
			{"exec", ctr + "run -d --runtime io.containerd.nemoclaw.v1 --rootfs /image two sleep 1000 && " + ctr + "task exec --exec-id e two cat /root/secret", 1, "Permission denied"},
			{"removed", ctr + "task rm -f two; " + ctr + "container rm two", 0, ""},
		})
	})
	t.Run("podman", func(t *testing.T) {
		// Docker's firewall forwards nothing but what Docker's containers send.
		m.must("systemctl stop docker.service docker.socket; iptables -P FORWARD ACCEPT")
		const podman = "podman run --rm --runtime=/usr/local/bin/nemoclaw "
		m.steps(t, []step{
			{"an image", "tar -C /image -c . | podman import - box && podman info --format '{{.Host.CgroupManager}} {{.Host.CgroupsVersion}}'", 0, "systemd v2"},
			{"it runs", podman + "box sh -c 'echo ran; exit 7'", 7, "ran"},
			{"layer 1", podman + "box sh -c '" + steal + "echo refused'", 0, "refused"},
			{"layers 3 and 4", podman + "box sh -c 'wget -qO- http://192.0.2.1:81/ || wget -qO- http://192.0.2.1/'", 0, "403 Forbidden"},
			{"a port", "podman run --detach --name web -p 8081:80 --runtime=/usr/local/bin/nemoclaw box " + serve + " && " + page + " 8081", 0, "inside"},
			{"exec", "podman exec web sh -c '" + steal + "wget -qO- http://192.0.2.1:81/" + refused + "'", 0, "refused"},
			{"removed", "podman rm -f -t 1 web", 0, "web"},
		})
	})
}
