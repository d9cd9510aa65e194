// Package engines tests nemoclaw under real container engines, end to end. It
// exports nothing and may not touch the machine it runs on: no package is
// installed, no cgroup, mount, namespace, process or firewall rule outlives it.
//
// It runs only with NEMOCLAW_ENGINES=1 (make test-engines), as root, on Debian
// or a relative of it.
//
//	go test ─┬─ fetches the engine and the images into the cache
//	         └─ init of a throw-away host: mount, network and pid namespaces,
//	            its own /etc, /run, /var/lib and /var/log
//	              └─ the tests ── dockerd ── containerd ── nemoclaw
//
// The host's only cable leads to the world of integration/world.
//
// # Why
//
// The engine is unpacked and not installed, so that it does not displace a
// newcomer's own; its version is whatever the machine's distribution has. The
// tests run inside the throw-away host and not beside it, because a process
// that is killed there takes the whole host with it: the kernel cleans up, also
// after a test that failed.
package engines
