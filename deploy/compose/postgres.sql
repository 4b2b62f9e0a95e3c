-- Runs once, when the volume is new: hone's database is made by POSTGRES_DB.
CREATE DATABASE airflow;
