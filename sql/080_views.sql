-- The views that users meet. They follow the active model: activate() replaces them, and init does so again here. The lock
-- keeps an activation of this very moment from coming between the question and the answer.
DO $$
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    PERFORM callipper._replace_views((SELECT version FROM callipper.model WHERE status = 'active'));
END
$$;
