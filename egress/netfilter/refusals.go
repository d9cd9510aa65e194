package netfilter

// Refusals tells of packets that were refused in one namespace.
type Refusals struct{ packets *socket }

// OpenRefusals begins to hear of what rules log to group, in the thread's
// network namespace.
func OpenRefusals(group uint16) (*Refusals, error) {
	s, err := openPackets(group, room)
	if err != nil {
		return nil, err
	}
	return &Refusals{s}, nil
}

// Stop ends a Next that waits, and every later one, with os.ErrClosed. The rest
// can be had by Drain.
func (r *Refusals) Stop() { r.packets.wake() }

// Close lets go of the namespace.
func (r *Refusals) Close() { r.packets.Close() }

// Next waits until something was refused, and passes it on. unix.ENOBUFS says
// that some was lost, os.ErrClosed that Stop or Close was called.
func (r *Refusals) Next(each func(Packet)) error {
	if err := r.packets.receive(refused(each)); err != nil {
		return failed("hear of a refused connection", err)
	}
	return nil
}

// Drain passes on what the kernel has told so far.
func (r *Refusals) Drain(each func(Packet)) error {
	if err := r.packets.drain(refused(each)); err != nil {
		return failed("hear of a refused connection", err)
	}
	return nil
}

// refused reads packets that were logged.
func refused(each func(Packet)) func(uint16, uint32, []byte) error {
	return func(kind uint16, _ uint32, data []byte) error {
		if p, ok := ParsePacket(kind, data); ok {
			each(p)
		}
		return nil
	}
}
