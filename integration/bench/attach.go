package main

import (
	"errors"
	"fmt"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// attach measures what a network namespace with a gateway adds to a container's
// life: by the same container that joins a namespace whose gateway stands, and
// by one that has none.
func (b *bench) attach() (err error) {
	c, err := b.contestant(nemoclaw)
	if err != nil {
		return err
	}
	first, err := b.bundle("attach first", dockerProfile, b.rootfs(), "/bin/sleep", "100000")
	if err != nil {
		return err
	}
	host, err := b.create(c, first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.remove()) }()
	if err := host.do("start", host.id); err != nil {
		return err
	}
	const own, joined, open = "own namespace, own gateway", "another's namespace and its gateway", "unconfined: none of the layers"
	unconfined := c
	unconfined.name = nemoclaw + ", unconfined"
	unconfined.argv = append(append([]string{}, c.argv...), "--policy", "unconfined")
	ways := []struct {
		name      string
		c         contestant
		namespace string // the network's, or empty for a new one
		bundle    string
	}{
		{name: own, c: c},
		{name: joined, c: c, namespace: fmt.Sprintf("/proc/%d/ns/net", host.pid)},
		{name: open, c: unconfined},
	}
	life := table{Title: "Attaching a gateway", Unit: "create, start, end of `true`, delete: ms",
		Notes: "What a gateway of its own costs is the difference of the first two rows, round by round. Joining is not free: the gateway that stands is told of the newcomer."}
	created := table{Title: "Attaching a gateway, while creating", Unit: "create: ms"}
	for i, w := range ways {
		if ways[i].bundle, err = b.bundleIn("attach "+w.name, dockerProfile, b.rootfs(), w.namespace, "/bin/true"); err != nil {
			return err
		}
		life.Rows = append(life.Rows, series{Name: w.name, Against: joined})
		created.Rows = append(created.Rows, series{Name: w.name, Against: joined})
	}
	err = interleave(b.rounds, len(ways), func(who int, counted bool) error {
		took, err := b.life(ways[who].c, ways[who].bundle)
		if err != nil || !counted {
			return err
		}
		created.add(who, milliseconds(took[0]))
		sum := took[0]
		for _, d := range took[1:] {
			sum += d
		}
		life.add(who, milliseconds(sum))
		return nil
	})
	if err != nil {
		return err
	}
	life.addDifference("attach and detach", 0, 1)
	created.addDifference("attach", 0, 1)
	return errors.Join(b.print(life), b.print(created))
}

// addDifference adds the row of what row a took longer than row b, round by round.
func (t *table) addDifference(name string, a, b int) {
	s := series{Name: name}
	for i, v := range t.Rows[a].Samples {
		s.Samples = append(s.Samples, v-t.Rows[b].Samples[i])
	}
	t.Rows = append(t.Rows, s)
}

// joinNetwork replaces the spec's new network namespace by the one at path.
func joinNetwork(spec *oci.Spec, path string) {
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == oci.NetworkNamespace {
			ns.Path = path
		}
	}
}
